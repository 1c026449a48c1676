"""Batches of latents for training, in the order of clips: worker processes read them as the formula of order.py says.

Shapes: b examples of a rank, structure [b, d_S, n_q, h_S, w_S], dynamics [b, d_D, f, w_D + h_D].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from data_pipeline.dataset.exact_sums import Float32Array
from data_pipeline.dataset.kind import LATENTS, Kind
from data_pipeline.dataset.latent_tensors import MEANS
from data_pipeline.read.batches import Examples
from data_pipeline.read.config import LatentDataConfig
from data_pipeline.read.latent_examples import LatentExamples, names_read
from data_pipeline.read.latent_reader import LatentReader, LatentRow, Uint8Array
from data_pipeline.read.normalization import constant_channels
from data_pipeline.read.sample_loader import SampleLoader
from data_pipeline.read.sample_table import Sample
from data_pipeline.read.selection import Selection, select_latents
from data_pipeline.read.text_choice import caption_of
from data_pipeline.read.texts import Texts, padded_texts


@dataclass(kw_only=True)
class LatentBatch(Examples):
    """One rank's latents of one global step, in the order of the global batch."""

    structure: Tensor  # float32 [b, d_S, n_q, h_S, w_S]
    dynamics: Tensor  # float32 [b, d_D, f, w_D + h_D]
    text: Tensor | None = None  # with data.text: float32 [b, L, width], token embeddings of `captions`, 0 behind them
    text_mask: Tensor | None = None  # with data.text: bool [b, L], True for the tokens of the caption

    def pin_memory(self) -> LatentBatch:
        """Copy the tensors to page-locked memory, so that their copy to a GPU can overlap with computing."""
        for name in ("structure", "dynamics", "text", "text_mask"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.pin_memory())
        return self


@dataclass
class _Rows:
    """Stored bytes of a batch while its samples are read."""

    tensor: Tensor  # uint8 [b, bytes]
    array: Uint8Array  # the same memory
    noise: list[Float32Array | None] = field(default_factory=list)
    texts: list[Float32Array] = field(default_factory=list)  # with data.text


class LatentLoader(SampleLoader[_Rows, LatentBatch]):
    """The training latents of one rank: `SampleLoader` says what is asked for and what is refused.

    Raises:
        ValueError: also where data.sample, data.normalize or data.text asks for what the dataset does not have.

    Attributes:
        texts: the token embeddings of the captions; None without data.text.
    """

    KIND: ClassVar[Kind] = LATENTS
    SELECTED_BY: ClassVar[str] = "data.split and data.mirrored"
    CHECKSUMS: ClassVar[bool] = True
    config: LatentDataConfig

    def __init__(
        self, config: LatentDataConfig, rank: int = 0, world_size: int = 1, *, pin_memory: bool = False
    ) -> None:
        super().__init__(config, rank, world_size, pin_memory=pin_memory)
        assert self.files.dataset.latents is not None
        self.description = self.files.dataset.latents
        row = LatentRow(self.description, names_read(config, self.description))
        self._reader = LatentReader(self.files, row)
        self._examples = LatentExamples(config, self.description, row)
        self.texts = Texts(config) if config.text else None
        if self.texts is not None and not self.texts.know_all_of(self.files.dataset):
            self.texts.check_samples(self.table, self.selection, self._reader, row.bytes)

    def describe(self) -> str:
        """One line: which samples are read and which are left out; and, of normalised ones, the constant channels."""
        line = super().describe()
        constant = constant_channels(self.description) if self.config.normalize else {}
        if constant:
            named = ", ".join(f"{name} {channels}" for name, channels in constant.items())
            line += f"; channels with deviation 0, divided by 1: {named}"
        return line if self.texts is None else f"{line}\n{self.texts.describe()}"

    def _select(self) -> Selection:
        return select_latents(self.table, self.config)

    def _tensor_bytes(self, examples: int) -> list[int]:
        structure, w, h = (4 * examples * int(np.prod(self.description.shapes[name])) for name in MEANS)
        if self.texts is None:
            return [structure, w + h]
        tokens = examples * self.texts.description.max_tokens
        return [structure, w + h, 4 * tokens * self.texts.description.width, tokens]

    def _begin(self, begin: int, examples: int) -> _Rows:
        rows = self._examples.rows(examples)
        return _Rows(rows, rows.numpy())

    def _read(self, work: _Rows, place: int, sample: Sample, epoch: int, attempt: int) -> str:
        if self.texts is None:
            caption = self._reader.read(sample, work.array[place])
        else:
            captions = self._reader.read_captions(sample, work.array[place])
            caption = caption_of(captions, self.config.seed, sample.key, epoch, attempt)
            work.texts.append(self.texts.read(caption, sample.key))
        work.noise.append(self._examples.noise(sample.key, epoch, attempt))
        return caption

    def _finish(self, work: _Rows, examples: Examples) -> LatentBatch:
        structure, dynamics = self._examples.tensors(work.tensor, work.noise)
        text, mask = padded_texts(work.texts) if self.texts is not None else (None, None)
        return LatentBatch(structure=structure, dynamics=dynamics, text=text, text_mask=mask, **vars(examples))

    def _after_fork(self) -> None:
        super()._after_fork()
        if self.texts is not None:
            self.texts.after_fork()

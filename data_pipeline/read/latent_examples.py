"""From stored bytes to the latents that a training takes: means or draws, with two parts of dynamics joined.

Shapes: b examples, structure [b, d_S, n_q, h_S, w_S], dynamics [b, d_D, f, w_D + h_D].
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.exact_sums import Float32Array
from data_pipeline.dataset.latent_records import LatentsDescription
from data_pipeline.dataset.latent_tensors import LOGVARS, MEANS, TENSORS
from data_pipeline.read.config import LatentDataConfig
from data_pipeline.read.latent_reader import LatentRow
from data_pipeline.read.normal import normal_numbers
from data_pipeline.read.normalization import Normalization
from data_pipeline.read.order import PURPOSE_LATENT, draw

_TYPES = {
    LatentDtype.fp32: torch.float32,
    LatentDtype.fp16: torch.float16,
    LatentDtype.bf16: torch.bfloat16,
}


def names_read(config: LatentDataConfig, latents: LatentsDescription) -> tuple[str, ...]:
    """The tensors that a configuration needs.

    Raises:
        ValueError: data.sample=true, and the dataset does not store the log-variances.
    """
    if config.sample and not all(name in latents.shapes for name in LOGVARS):
        raise ValueError(
            f"data.sample=true needs the log-variances, which data.shards={config.shards} does not store; set "
            "data.sample=false, or encode the clips with stored.logvar=true"
        )
    return TENSORS if config.sample else MEANS


class LatentExamples:
    """Makes examples of rows.

    Args:
        config: what is wanted.
        latents: what dataset.json says.
        row: the tensors of `names_read`.
    Raises:
        ValueError: data.normalize=true, and the dataset has no statistics.
    """

    def __init__(self, config: LatentDataConfig, latents: LatentsDescription, row: LatentRow) -> None:
        self._config, self._row = config, row
        self._shapes = {name: row.shapes[name] for name in MEANS}
        self._numbers = sum(int(np.prod(shape)) for shape in self._shapes.values())
        self._normalization = Normalization.of(latents) if config.normalize else None
        self._rows = torch.empty(0, row.bytes, dtype=torch.uint8)

    def rows(self, examples: int) -> Tensor:
        """Memory for rows, uint8 [b, bytes]: the same one in each call, because new memory takes time to come."""
        if len(self._rows) < examples:
            self._rows = torch.empty(examples, self._row.bytes, dtype=torch.uint8)
        return self._rows[:examples]

    def noise(self, key: str, epoch: int, attempt: int = 0) -> Float32Array | None:
        """The normal numbers of a sample's draw in the order of MEANS; None where means are wanted.

        They follow from data.seed, the sample's key and the epoch alone, on every machine.

        Args:
            attempt: above 0 when the sample takes the place of an unreadable one. It shows twice in that epoch, and
                is drawn twice.
        """
        if not self._config.sample:
            return None
        name = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        words = draw(self._config.seed, PURPOSE_LATENT, (name, epoch, attempt), (self._numbers + 1) // 2)
        return normal_numbers(words, self._numbers)

    def tensors(self, rows: Tensor, noise: list[Float32Array | None]) -> tuple[Tensor, Tensor]:
        """structure and dynamics of rows [b, bytes], float32, with the noise of each row."""
        stored = rows.view(_TYPES[self._row.dtype])
        structure, w, h = (self._shapes[name] for name in MEANS)
        examples = (
            torch.empty(len(rows), *structure, dtype=torch.float32),
            torch.empty(len(rows), *w[:-1], w[-1] + h[-1], dtype=torch.float32),
        )
        outs = (examples[0], examples[1][..., : w[-1]], examples[1][..., w[-1] :])
        if not self._config.sample:
            for (name, shape), out in zip(self._shapes.items(), outs, strict=True):
                out.copy_(stored[:, self._row.place(name)].view(-1, *shape))
        for place, numbers in enumerate(noise):
            if numbers is not None:
                drawn = self._drawn(stored[place].float().numpy(), numbers)
                for values, out in zip(drawn, outs, strict=True):
                    out[place] = torch.from_numpy(values)
        return self._normalization.apply(*examples) if self._normalization else examples

    def _drawn(self, values: Float32Array, noise: Float32Array) -> Iterator[Float32Array]:
        """mean + exp(logvar / 2) * noise of each tensor of MEANS.

        One sample at a time, because a library may compute the last numbers of a longer array by another formula, and
        then a draw would depend on its batch.
        """
        begin = 0
        for mean, logvar in zip(MEANS, LOGVARS, strict=True):
            drawn = np.exp(values[self._row.place(logvar)] * np.float32(0.5))
            drawn *= noise[begin : begin + len(drawn)]
            drawn += values[self._row.place(mean)]
            begin += len(drawn)
            yield drawn.reshape(self._shapes[mean])

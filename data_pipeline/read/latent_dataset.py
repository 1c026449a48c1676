"""The latents of a split as a map-style dataset of torch, for trainers that bring their own order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_pipeline.dataset.latent_records import LatentsDescription
from data_pipeline.read.config import LatentDataConfig
from data_pipeline.read.latent_archive import LatentFiles
from data_pipeline.read.latent_examples import LatentExamples, names_read
from data_pipeline.read.selection import select_latents

LatentItem: TypeAlias = dict[str, Any]
"""`structure` [d_S, n_q, h_S, w_S] and `dynamics` [d_D, f, w_D + h_D], float32; `caption`, `label`, `key`: texts."""


class LatentDataset(Dataset[LatentItem]):
    """The latents of a split. It can be pickled; a forked or spawned process reads over connections of its own.

    Args:
        place: folder or s3://bucket/prefix.
        split: train, val or test.
        mirrored: whether the samples that were encoded with left and right exchanged belong to it.
        sample: draw each latent from its stored posterior, by the sample's key and the epoch; False: the mean.
        normalize: subtract the mean of each channel and divide by its deviation (`Normalization`).
        seed: of the draws.
        cache_dir: folder for the shards of an s3:// dataset; empty: one among the temporary files.
        cache_bytes: most bytes that folder may hold.
    Raises:
        ValueError: there is no dataset of latents, no sample to read, or it lacks what `sample` or `normalize` needs.
        StoreError: the storage fails.
    """

    def __init__(
        self,
        place: str,
        split: str = "train",
        *,
        mirrored: bool = True,
        sample: bool = False,
        normalize: bool = False,
        seed: int = 0,
        cache_dir: str = "",
        cache_bytes: int = 100_000_000_000,
    ) -> None:
        config = LatentDataConfig(
            shards=place,
            split=split,
            mirrored=mirrored,
            sample=sample,
            normalize=normalize,
            seed=seed,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
        )
        self._files = LatentFiles(config, names_read)
        self._rows = select_latents(self._files.table, config).rows
        self._examples = LatentExamples(config, self._files.description, self._files.row)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # so that running workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Draw the latents of another epoch from now on, in workers that are already running as well."""
        self._epoch.fill_(epoch)

    @property
    def description(self) -> LatentsDescription:
        """Model, shapes, windows and statistics, as dataset.json has them."""
        return self._files.description

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the samples, in order."""
        keys = self._files.keys
        return [keys[row] for row in self._rows.tolist()]

    def captions(self, numbers: Sequence[int]) -> list[tuple[str, ...]]:
        """All captions of some samples, `("",)` of one without captions. Raises: IndexError; UnreadableSample."""
        return self._files.captions([int(self._rows[number]) for number in numbers])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}

    def by_key(self, key: str) -> LatentItem:
        """The sample with this key. Raises: KeyError; UnreadableSample."""
        return self[self._numbers[key]]

    def __getitem__(self, number: int | str) -> LatentItem:
        """A sample by its number or its key. Raises: IndexError or KeyError; UnreadableSample."""
        return self.by_key(number) if isinstance(number, str) else self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[LatentItem]:
        """Several samples, which a DataLoader asks for together: faster than one after the other."""
        read = self._files.read([int(self._rows[number]) for number in numbers])
        epoch = int(self._epoch)
        noise = [self._examples.noise(sample.key, epoch) for sample in read.samples]
        structure, dynamics = self._examples.tensors(torch.from_numpy(read.rows), noise)
        return [
            _item(structure[place], dynamics[place], read.captions[place], sample.label, sample.key)
            for place, sample in enumerate(read.samples)
        ]


def _item(structure: Tensor, dynamics: Tensor, caption: str, label: str, key: str) -> LatentItem:
    return {"structure": structure, "dynamics": dynamics, "caption": caption, "label": label, "key": key}

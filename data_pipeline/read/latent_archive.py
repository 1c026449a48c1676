"""The latents of a dataset by their keys, as NumPy arrays: `open_latents(place)[key]`. Nothing here needs torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from data_pipeline.dataset.exact_sums import Float32Array
from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.latent_records import LatentsDescription
from data_pipeline.dataset.latent_tensors import TENSORS
from data_pipeline.read.config import LatentDataConfig
from data_pipeline.read.latent_reader import LatentReader, LatentRow, Uint8Array
from data_pipeline.read.sample_table import Sample, SampleTable
from data_pipeline.read.shard_files import ShardFiles

LatentSample: TypeAlias = dict[str, Float32Array | str]
"""Stored tensor -> float32 array without a batch axis; and `caption`."""


ChooseNames: TypeAlias = Callable[[LatentDataConfig, LatentsDescription], Sequence[str]]
"""Settings and description of a dataset -> the tensors to read. A function of a module, so that it can be pickled."""


@dataclass
class RowsRead:
    """Some samples as they are stored."""

    samples: list[Sample]
    rows: Uint8Array  # [b, bytes], see LatentRow
    captions: list[str]


class LatentFiles:
    """Reads samples by their rows of the index, in whatever process asks.

    It can be pickled: another process opens the dataset anew.

    Args:
        config: where the dataset is, and the cache's folder and size.
        names: says which tensors are read.
    Raises:
        ValueError: there is no dataset of latents.
        StoreError: the storage fails.
    """

    def __init__(self, config: LatentDataConfig, names: ChooseNames) -> None:
        self._config, self._names = config, names
        self._files = ShardFiles(config, LATENTS)
        assert self._files.dataset.latents is not None
        self.description: LatentsDescription = self._files.dataset.latents
        self.table = SampleTable(self._files.index_path(), len(self._files.dataset.shards), checksums=True)
        self.row = LatentRow(self.description, names(config, self.description))
        self._reader = LatentReader(self._files, self.row)
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self._config, "names": self._names, "index": self._files.dataset.digest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"], state["names"])  # type: ignore[misc]
        if self._files.dataset.digest != state["index"]:
            raise ValueError(
                f"data.shards={self._config.shards} has changed since it was opened, so its rows mean other samples; "
                "open it again"
            )

    def read(self, rows: Sequence[int]) -> RowsRead:
        """Some samples.

        Raises:
            UnreadableSample: one of them cannot be read.
            StoreError: the storage fails.
        """
        if self._process != os.getpid():
            self._files.after_fork()
            self._process = os.getpid()
        samples = self.table.samples(rows)
        data = np.empty((len(samples), self.row.bytes), dtype=np.uint8)
        captions = [self._reader.read(sample, out) for sample, out in zip(samples, data, strict=True)]
        return RowsRead(samples, data, captions)

    def captions(self, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """All captions of some samples, those of a further column `captions` included. Raises: as `read`."""
        out = np.empty(self.row.bytes, dtype=np.uint8)
        return [self._reader.read_captions(sample, out) for sample in self.table.samples(rows)]

    @cached_property
    def keys(self) -> list[str]:
        """The key of every row."""
        return [str(key) for _, (keys,) in self.table.columns("key") for key in keys]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Key -> row. It is made when it is first asked for, and takes some 200 bytes a sample."""
        return {key: row for row, key in enumerate(self.keys)}


def names_stored(config: LatentDataConfig, latents: LatentsDescription) -> tuple[str, ...]:
    """All tensors that are stored."""
    return tuple(name for name in TENSORS if name in latents.shapes)


class LatentArchive(Mapping[str, LatentSample]):
    """The samples of all splits by their keys, in the order of the index. `open_latents` makes one."""

    def __init__(self, files: LatentFiles) -> None:
        self._files = files

    @property
    def description(self) -> LatentsDescription:
        """Model, shapes, windows and statistics, as dataset.json has them."""
        return self._files.description

    def __getitem__(self, key: str) -> LatentSample:
        """The stored tensors and the caption of a sample.

        Raises:
            KeyError: there is no such sample.
            UnreadableSample: the sample is damaged.
        """
        read = self._files.read([self._files.rows[key]])
        tensors = self._files.row.float32(read.rows)
        return {**{name: values[0] for name, values in tensors.items()}, "caption": read.captions[0]}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files.keys)

    def __len__(self) -> int:
        return len(self._files.table)


def open_latents(place: str, *, cache_dir: str = "", cache_bytes: int = 100_000_000_000) -> LatentArchive:
    """The latents of a dataset by their keys, much as `numpy.load` gives the arrays of an .npz.

    Args:
        place: folder or s3://bucket/prefix.
        cache_dir: folder for the shards of an s3:// dataset; empty: one among the temporary files.
        cache_bytes: most bytes that folder may hold.
    Raises:
        ValueError: there is no dataset of latents.
        StoreError: the storage fails.
    """
    config = LatentDataConfig(shards=place, cache_dir=cache_dir, cache_bytes=cache_bytes)
    return LatentArchive(LatentFiles(config, names_stored))

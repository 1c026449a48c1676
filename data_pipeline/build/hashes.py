"""Hashes of many texts on local disk, parted so that equal texts are found with bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

_PARTITIONS = 16


def text_hashes(texts: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Hashes by Python's own string hash: int64. They differ from process to process, and one process compares them."""
    return np.fromiter(map(hash, texts.to_pylist()), np.int64, len(texts))


def among(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """For each value, whether an ascending array contains it: bool.

    `numpy.isin` would sort the ordered array again in each call, and these calls are as many as the batches of a
    manifest.
    """
    if not len(ordered):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[place] == values)


def repeated(values: np.ndarray) -> np.ndarray:
    """The values that occur more than once, each once. Sorts the given array."""
    values.sort()
    return np.unique(values[1:][values[1:] == values[:-1]])


class HashFiles:
    """Hashes in files `<name>-<partition>` of a folder; equal ones lie in one file."""

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = [folder / f"{name}-{number}" for number in range(_PARTITIONS)]
        self._files = [path.open("wb") for path in self._paths]

    def add(self, hashes: np.ndarray) -> None:
        """Take further hashes, int64."""
        part = hashes % _PARTITIONS
        for number, file in enumerate(self._files):
            hashes[part == number].tofile(file)

    def close(self) -> None:
        """All hashes have been added."""
        for file in self._files:
            file.close()

    def partitions(self) -> Iterator[np.ndarray]:
        """All hashes, a part at a time. To be called after `close`."""
        for path in self._paths:
            yield np.fromfile(path, np.int64)

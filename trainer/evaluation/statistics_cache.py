"""Statistics of the features of a set of clips, kept in a file, so that real clips go through a network once."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.store.files import atomic_file
from trainer.evaluation.frechet import GaussianStatistics

_VERSION = "statistics-1"
"""To be raised when a change of this program changes the statistics of unchanged clips."""


class StatisticsCache:
    """A folder with one file for each set of clips and network.

    Args:
        folder: is made when the first file is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, extractor: str, clips: Mapping[str, Any]) -> Path:
        """The file of a set.

        Args:
            extractor: digest of the network.
            clips: all that decides which pixels the network sees, as JSON has it: the data and its version, split,
                frames, stride, size, number and seed.
        """
        told = json.dumps([_VERSION, extractor, dict(clips)], sort_keys=True)
        return self.folder / f"{hashlib.sha256(told.encode()).hexdigest()[:40]}.npz"

    def load(self, extractor: str, clips: Mapping[str, Any]) -> GaussianStatistics | None:
        """The statistics of a set; None where there is no file, or a damaged one."""
        try:
            with np.load(self.file(extractor, clips), allow_pickle=False) as opened:
                return GaussianStatistics.restored(
                    int(opened["count"]), opened["origin"], opened["sum"], opened["outer"]
                )
        except (FileNotFoundError, zipfile.BadZipFile, KeyError, EOFError, ValueError):
            return None

    def save(self, extractor: str, clips: Mapping[str, Any], statistics: GaussianStatistics) -> None:
        """Keep the statistics of a set, of one vector or more. Raises: OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.file(extractor, clips)) as temporary, temporary.open("wb") as opened:
            np.savez(opened, allow_pickle=False, **statistics.sums())

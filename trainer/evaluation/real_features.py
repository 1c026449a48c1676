"""What feature networks said of real windows, computed once for all models, and kept for later commands.

A file is named after all that decides its numbers: the digest of the network, the windows, and how many go through the
network together. It does not depend on the model that is measured.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.store.files import atomic_file
from trainer.evaluation.pieces import Piece
from trainer.evaluation.sources import Part

_VERSION = "real-1"
"""Increased when a change of this program changes the features of an unchanged window."""

Known = Mapping[str, NDArray[np.float32]]
"""Name of a metric -> features of windows, [n, m, d]: m vectors of a window."""


class RealFeatures:
    """Features of real windows, by the pieces in which they are measured.

    Args:
        digests: of the networks, by the names of their metrics.
        told: what else decides the features besides the windows.
        folder: where they are kept for other processes and later commands; None keeps them in this process alone.
    """

    def __init__(
        self, digests: Mapping[str, str], told: Mapping[str, Any] | None = None, folder: Path | None = None
    ) -> None:
        self._digests, self._told, self._folder = dict(digests), dict(told or {}), folder
        self._here: dict[str, NDArray[np.floating]] = {}

    def of(self, part: Part, number: int) -> Known:
        """What is known of the windows of a piece, from the piece's first window on.

        Args:
            number: of the piece among those of its part.
        """
        found = {}
        for name in self._digests:
            key = self._key(part, number, name)
            rows = self._here.get(key)
            if rows is None and self._folder is not None:
                rows = load_features(self._folder / f"{key}.npz")
            if rows is not None:
                found[name] = rows
        return found

    def add(self, part: Part, piece: Piece) -> None:
        """Remember what this process has computed, or found.

        A piece of a part that could not be read to its end is not remembered: another model may be able to read the
        windows that are missing here, and then the features would be those of other windows.
        """
        if piece.totals is not None and piece.totals.failed:
            return
        for name, (real, _) in piece.features.items():
            self._here[self._key(part, piece.number, name)] = real

    def save(self, part: Part, piece: Piece) -> None:
        """Keep a piece in the folder, if there is one. That of a part that could not be read to its end is not kept.

        Raises:
            StoreError: the disk is full.
        """
        if self._folder is None or (piece.totals is not None and piece.totals.failed):
            return
        for name, (real, _) in piece.features.items():
            file = self._folder / f"{self._key(part, piece.number, name)}.npz"
            if not file.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                save_features(file, real)

    def _key(self, part: Part, number: int, name: str) -> str:
        told = json.dumps([_VERSION, name, self._digests[name], self._told, part.identity], sort_keys=True)
        return f"{hashlib.sha256(told.encode()).hexdigest()[:40]}-{number:05d}"


def load_features(file: Path) -> NDArray[np.float32] | None:
    """Features [n, m, d]; None where there is no file, or a damaged one: then they are computed again."""
    try:
        with np.load(file, allow_pickle=False) as opened:
            values: NDArray[np.float32] = opened["values"]
            return values if values.dtype == np.float32 and values.ndim == 3 and np.isfinite(values).all() else None
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, EOFError, ValueError):
        return None


def save_features(file: Path, values: NDArray[np.floating]) -> None:
    """Write features [n, m, d]. Raises: StoreError: the disk is full."""
    with atomic_file(file) as temporary, temporary.open("wb") as opened:
        np.savez(opened, values=values)

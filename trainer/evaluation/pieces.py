"""What was measured of a few windows: the unit that goes from one process to another and that is kept on a disk."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.store.files import atomic_file
from trainer.evaluation.sources import Part, Totals, Window

_VERSION = "windows-3"
"""Increased when a change of this program changes the values of an unchanged window."""

Features = tuple[NDArray[np.floating], NDArray[np.floating]]
"""Features of the real windows and of their reconstructions, [n, m, d] each: m vectors of a window."""


@dataclass
class Piece:
    """The windows of a part from the end of its previous piece on.

    Attributes:
        part: name of the part.
        number: of the piece among those of its part.
        sources, starts, intervals, fps: of each window, as in `Window`.
        values: name of a metric -> its value for each window.
        features: name of a metric of whole sets -> features of each window.
        totals: of the whole part, in its last piece; None in the others.
    """

    part: str
    number: int
    sources: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    intervals: list[int] = field(default_factory=list)
    fps: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)
    totals: Totals | None = None

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.sources)

    def add(
        self, windows: Sequence[Window], values: Mapping[str, Sequence[float]], features: Mapping[str, Features]
    ) -> None:
        """Add windows, in their order, with their values and features."""
        self.sources += [window.source for window in windows]
        self.starts += [window.start for window in windows]
        self.intervals += [window.interval for window in windows]
        self.fps += [window.fps for window in windows]
        for name, numbers in values.items():
            self.values.setdefault(name, []).extend(numbers)
        for name, pair in features.items():
            before = self.features.get(name)
            joined = pair if before is None else tuple(np.concatenate(both) for both in zip(before, pair, strict=True))
            self.features[name] = (joined[0], joined[1])


class Kept:
    """The pieces of earlier runs of the same command, and of this one.

    A file is named after all that decides its values: what else is found in the folder is passed over.

    Args:
        folder: None keeps nothing.
        told: what decides the values besides the part: the model, the networks of the metrics, the device.
    """

    def __init__(self, folder: Path | None = None, told: Mapping[str, Any] | None = None) -> None:
        self._folder, self._told = folder, dict(told or {})
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def load(self, part: Part) -> list[Piece]:
        """The first pieces of a part, as many as there are without a gap."""
        found: list[Piece] = []
        while self._folder is not None and (not found or found[-1].totals is None):
            piece = _load(self._file(part, len(found)), part.name, len(found))
            if piece is None:
                break
            found.append(piece)
        return found

    def save(self, part: Part, piece: Piece) -> None:
        """Keep a piece. The last piece of a part with failures is not kept, so that these are met and named again.

        Raises:
            StoreError: the disk is full.
        """
        if self._folder is None or (piece.totals is not None and piece.totals.failed):
            return
        arrays = {
            f"{kind}:{name}": rows
            for name, pair in piece.features.items()
            for kind, rows in zip(("real", "fake"), pair, strict=True)
        }
        said = {key: value for key, value in asdict(piece).items() if key not in ("features", "part", "number")}
        with atomic_file(self._file(part, piece.number)) as temporary, temporary.open("wb") as opened:
            np.savez(opened, said=np.array(json.dumps(said)), **arrays)  # type: ignore[arg-type]  # names of arrays

    def _file(self, part: Part, number: int) -> Path:
        assert self._folder is not None
        told = json.dumps([_VERSION, self._told, part.identity], sort_keys=True)
        return self._folder / f"{hashlib.sha256(told.encode()).hexdigest()[:40]}-{number:05d}.npz"


def _load(file: Path, part: str, number: int) -> Piece | None:
    """None where there is no file, or one that is damaged: then the windows are measured again."""
    try:
        with np.load(file, allow_pickle=False) as opened:
            said = json.loads(str(opened["said"]))
            names = [name.removeprefix("real:") for name in opened.files if name.startswith("real:")]
            features = {name: (opened[f"real:{name}"], opened[f"fake:{name}"]) for name in names}
    except (FileNotFoundError, zipfile.BadZipFile, KeyError, EOFError, ValueError):
        return None
    totals = said.pop("totals")
    if totals is not None:
        totals = Totals(**totals | {"failed": [(name, reason) for name, reason in totals["failed"]]})
    return Piece(part, number, **said, features=features, totals=totals)

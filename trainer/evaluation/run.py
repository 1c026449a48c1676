"""Reconstructs windows and measures them, by one process or by several, and goes on where an earlier run ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data_pipeline.store.counted import counted
from model.vidtwin import VidTwin
from trainer.engine.want_of_memory import batch_in_memory
from trainer.evaluation.measures import Measures
from trainer.evaluation.metrics import reconstruct
from trainer.evaluation.pieces import Kept, Piece
from trainer.evaluation.read_ahead import prefetched
from trainer.evaluation.real_features import Known, RealFeatures
from trainer.evaluation.sources import Part, Totals, Window, WindowSource
from trainer.evaluation.windows import Windows, joined
from trainer.team import ALONE, Feed, Team

PIECE_WINDOWS = 16
"""A piece ends when it has so many windows, and at the end of its part."""

SNAPSHOT_S = 60.0

Progress = Callable[["Done"], None]


@dataclass(frozen=True)
class Done:
    """How far a measurement is.

    Attributes:
        windows: number of the windows that have been measured, with those of earlier runs.
        share: the share of the work that is done, from 0 to 1, with that of earlier runs.
        before: the share of the work that earlier runs did.
    """

    windows: int
    share: float
    before: float


class CutShort(Exception):
    """A measurement that ended before its source did, for a reason from outside or in it.

    Attributes:
        windows: those that were measured.
        cause: what ended the measurement.
        reason: the same in words.
    """

    def __init__(self, windows: Windows, cause: BaseException) -> None:
        self.windows, self.cause = windows, cause
        interrupted = isinstance(cause, KeyboardInterrupt | SystemExit)
        self.reason = "interrupted" if interrupted else str(cause) or type(cause).__name__
        super().__init__(f"cut short after {counted(len(windows), 'window')}: {self.reason}")


def window_frames(model: VidTwin, frames: int | None) -> int:
    """The number of frames in a window: `frames`, or for None the most that the model takes.

    Raises:
        WrongFrames: the model does not take `frames` frames.
    """
    most, least = model.config.frames, model.config.shortest
    if frames is None or least <= frames <= most:
        return most if frames is None else frames
    taken = f"{least} to {most} frames" if least < most else counted(most, "frame")
    raise WrongFrames(f"--frames {frames}: this model takes {taken}")


def measure(
    model: VidTwin,
    source: WindowSource,
    measures: Measures | None = None,
    *,
    batch: int = 4,
    team: Team = ALONE,
    kept: Kept | None = None,
    real: RealFeatures | None = None,
    progress: Progress | None = None,
    snapshot: Callable[[Windows], None] | None = None,
) -> Windows:
    """Reconstruct every window from its posterior means and measure the result; every rank of the team calls it.

    Args:
        model: in evaluation mode, on the device to use, the same on every rank.
        source: of windows with a number of frames and a size that the model takes, the same on every rank.
        measures: the metrics; None stands for those that need no weights.
        batch: windows put through the networks together. Which windows these are does not depend on the team.
        team: the processes that share the windows.
        kept: what earlier runs measured; on the main rank it gets what this run measures.
        real: what is known of the features of real windows; it gets what this run computes.
        progress: called on the main rank after each piece.
        snapshot: called on the main rank every `SNAPSHOT_S` seconds with what was measured so far.
    Returns:
        The windows on the main rank, and none on the others.
    Raises:
        ValueError: the source gave no window; the message has the reasons.
        CutShort: a store or disk failed, too much was unreadable or the user interrupted; it has all windows that were
            measured, and is raised on the main rank only.
    """
    chosen = measures or Measures()
    if real is None:
        real = RealFeatures({network.name: network.digest for network in chosen.sets})
    run = _Run(model, source, chosen, batch, kept or Kept(), real, progress, snapshot)
    try:
        team.deal(team.of_main(run.missing), run.work, run.take)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if not team.is_main:
            raise
        windows = run.windows()
        if not windows:
            raise
        raise CutShort(windows, error) from error
    windows = run.windows()
    if team.is_main and not windows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in windows.totals.failed[:5])
        raise ValueError(f"no window could be measured in {source.describe()}. {reasons}")
    return windows


@dataclass(frozen=True)
class _Begun:
    """A part with the number of its pieces and windows that earlier runs measured."""

    part: Part
    pieces: int = 0
    windows: int = 0


@dataclass
class _Run:
    """One measurement and how far it is."""

    model: VidTwin
    source: WindowSource
    measures: Measures
    batch: int
    kept: Kept
    real: RealFeatures
    progress: Progress | None
    snapshot: Callable[[Windows], None] | None
    pieces: list[Piece] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    unfinished: Piece | None = None
    known: Known = field(default_factory=dict)
    measured: int = 0  # windows of `pieces`
    whole: float = 0.0  # size of all parts
    done: float = 0.0  # size of the parts that are complete
    before: float = 0.0
    seen: float = field(default_factory=time.monotonic)

    def missing(self) -> list[_Begun]:
        """The parts that are not complete, the largest first: their last results come together."""
        self.parts = {part.name: part for part in self.source.parts()}
        self.whole = sum(part.size for part in self.parts.values())
        begun = []
        for part in self.parts.values():
            found = self.kept.load(part)
            for piece in found:
                self._add(piece)
            if not found or found[-1].totals is None:
                begun.append(_Begun(part, len(found), sum(map(len, found))))
        self.before = self._share()
        return sorted(begun, key=lambda item: -item.part.size)

    def work(self, feed: Feed[_Begun]) -> Generator[tuple[Piece, bool], None, None]:
        """Measure the parts of this rank; each result is a piece, and whether it is the last one of its part."""
        items = prefetched(_read(self.source, feed), depth=2 * self.batch, interrupt=self.source.interrupt)
        with closing(items), closing(feed):
            held: list[Window] = []
            part = Part("", "", 0)  # every feed begins with one
            for item in items:
                if isinstance(item, _Begun):
                    part = item.part
                    self._begin(part, item.pieces)
                    continue
                assert self.unfinished is not None
                if isinstance(item, Totals):
                    if held:
                        self._measure(held, self.unfinished)
                    held = []
                    self.unfinished.totals = item
                    yield self._finished(part), True
                    continue
                if not held and len(self.unfinished) >= PIECE_WINDOWS:  # only now it is known not to be the last one
                    yield self._finished(part), False
                held.append(item)
                if len(held) == self.batch:
                    self._measure(held, self.unfinished)
                    held = []

    def _begin(self, part: Part, number: int) -> None:
        self.unfinished, self.known = Piece(part.name, number), self.real.of(part, number)

    def _finished(self, part: Part) -> Piece:
        """The piece that is complete, in the place of which a new one begins."""
        piece = self.unfinished
        assert piece is not None
        self.real.add(part, piece)
        self._begin(part, piece.number + 1)
        return piece

    def _measure(self, held: list[Window], piece: Piece) -> None:
        end = len(piece) + len(held)
        known = {name: rows[len(piece) : end] for name, rows in self.known.items() if len(rows) >= end}
        with batch_in_memory(f"--batch {self.batch}"):
            real = torch.stack([window.video for window in held]).to(self.model.last_layer.weight.device)
            values, features = self.measures.of(real, reconstruct(self.model, real), known)
        for name, numbers in values.items():
            if not all(map(_is_finite, numbers)):
                raise NotFinite(f"{name} of {held[0].source} from frame {held[0].start} on is not finite")
        piece.add(held, values, features)

    def take(self, piece: Piece) -> None:
        """Add and keep a piece, on the main rank."""
        self._add(piece)
        self.kept.save(self.parts[piece.part], piece)
        self.real.save(self.parts[piece.part], piece)
        if self.progress is not None:
            self.progress(Done(self.measured, self._share(), self.before))
        if self.snapshot is not None and time.monotonic() - self.seen > SNAPSHOT_S:
            self.snapshot(self.windows())
            self.seen = time.monotonic()

    def windows(self) -> Windows:
        """All that were measured."""
        rest = [] if self.unfinished is None else [self.unfinished]
        order = {name: place for place, name in enumerate(self.parts)}
        return joined([*self.pieces, *rest] if order else [], order, self.source.whole())

    def _add(self, piece: Piece) -> None:
        """Count as well, because to count all pieces after each one would take the square of their number."""
        self.pieces.append(piece)
        self.measured += len(piece)
        self.done += self.parts[piece.part].size if piece.totals is not None else 0

    def _share(self) -> float:
        return self.done / self.whole if self.whole else 1.0


class WrongFrames(ValueError):
    """Windows of a length that a model does not take."""


class NotFinite(ValueError):
    """A model whose reconstructions have values that are not numbers."""


def _is_finite(value: float) -> bool:
    return value - value == 0


def _read(source: WindowSource, feed: Feed[_Begun]) -> Iterator[_Begun | Window | Totals]:
    """Yield each part of the feed with its windows that are not measured yet, and with its totals."""
    with closing(source):
        for begun in feed:
            yield begun
            totals = Totals()
            for number, window in enumerate(source.read(begun.part, totals)):
                if number >= begun.windows:
                    yield window
            yield totals


def load_model(directory: str | Path, device: torch.device, untrained: bool = False, seed: int = 0) -> VidTwin:
    """The model of a model directory.

    Args:
        untrained: give the same architecture with fresh random weights instead, as a baseline.
        seed: of these random weights.
    Raises:
        ValueError, FileNotFoundError: the directory holds no usable model.
    """
    model = VidTwin.from_pretrained(directory, device=device)
    if untrained:
        torch.manual_seed(seed)
        model = VidTwin(model.config).to(device).eval()
    return model

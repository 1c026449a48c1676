"""Several models measured on the same sources, one after another, with a report that grows with every source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from model.config import VidTwinConfig
from model.provenance import Provenance
from model.vidtwin import VidTwin
from trainer.evaluation.comparison import compare
from trainer.evaluation.measures import Measures
from trainer.evaluation.pieces import Kept
from trainer.evaluation.real_features import RealFeatures
from trainer.evaluation.report import Shape, report
from trainer.evaluation.run import CutShort, Done, measure
from trainer.evaluation.shown import Shown, choose, write_videos
from trainer.evaluation.sources import WindowSource
from trainer.evaluation.windows import Windows
from trainer.team import ALONE, Team

PIECES_FOLDER, REAL_FOLDER, SHOWN_FOLDER = "pieces", "real", "shown"
UNFINISHED = "still measuring"


@dataclass(frozen=True)
class Candidate:
    """A model that is measured.

    Attributes:
        name: as the user gave it.
        weights: `trained` or `untrained`.
        load: gives the model on the device, in evaluation mode.
        digest: of its weights.
        config: of the model.
        provenance: None where the model has none.
        sources: its windows, one source for each split or for all videos.
    """

    name: str
    weights: str
    load: Callable[[], VidTwin]
    digest: str
    config: VidTwinConfig
    provenance: Provenance | None
    sources: Sequence[WindowSource]

    def windows_like(self, other: Candidate) -> bool:
        """Whether both have the same windows."""
        return [source.settings for source in self.sources] == [source.settings for source in other.sources]


def digest_of(model: VidTwin) -> str:
    """SHA-256 over names, types, shapes and values of all weights."""
    found = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        found.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        found.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


@dataclass
class Measured:
    """What was measured of a model.

    Attributes:
        reports: place of a source that gave windows -> the report of the source.
        windows: place of such a source -> the measured windows.
        failed: place of a source that gave no windows at all -> the reason.
    """

    candidate: Candidate
    reports: dict[int, dict[str, Any]] = field(default_factory=dict)
    windows: dict[int, Windows] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Session:
    """A measurement of several models; every rank of the team makes it and calls `run`.

    Attributes:
        device: the kind of device, on which values may depend in their last digits.
        output: folder of the pieces and of the windows that are shown; None keeps nothing.
        progress: how far the present source is, with the numbers of model and source.
        changed: called on the main rank when the results have grown.
        finished: called on the main rank with the report of a source that has ended.
    Raises:
        ValueError: a metric cannot measure the windows of a candidate; the message names the candidate.
    """

    candidates: Sequence[Candidate]
    measures: Measures
    device: str
    batch: int = 4
    team: Team = ALONE
    output: Path | None = None
    progress: Callable[[int, int, Done], None] | None = None
    changed: Callable[[], None] = lambda: None
    finished: Callable[[Candidate, dict[str, Any]], None] = lambda candidate, found: None
    measured: list[Measured] = field(default_factory=list)
    _real: RealFeatures = field(init=False)
    _comparisons: dict[tuple[str, str, int], dict[str, Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        networks = {network.name: network.digest for network in self.measures.sets}
        folder = None if self.output is None else self.output / REAL_FOLDER
        self._real = RealFeatures(networks, self._computing(), folder)
        for candidate in self.candidates:
            try:
                self.measures.check(candidate.config.image_size)
            except ValueError as error:
                raise ValueError(f"{candidate.name}: {error}") from error

    def equal(self) -> dict[str, str]:
        """What must be the same on all ranks, as text: the models, the metrics and the windows."""
        sources = {id(source): source for candidate in self.candidates for source in candidate.sources}
        parts = [[(part.name, part.size) for part in source.parts()] for source in sources.values()]
        return {
            "models": json.dumps([[candidate.name, candidate.digest] for candidate in self.candidates]),
            "metrics": json.dumps(dict(self.measures.digests)),
            "windows": hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
            "settings": json.dumps([source.settings for source in sources.values()]),
            "--batch": str(self.batch),
        }

    def run(self) -> ValueError | None:
        """Measure every model on every source of its own.

        Returns:
            Why the first model or source could not be measured to its end; all others were measured.
        Raises:
            StoreError, KeyboardInterrupt, SystemExit: as they came, with all that was measured in `measured`.
        """
        first: ValueError | None = None
        for number, candidate in enumerate(self.candidates):
            self.measured.append(Measured(candidate))
            model = candidate.load()
            for place, source in enumerate(candidate.sources):
                try:
                    self._measure(self.measured[-1], model, source, number, place)
                except ValueError as error:  # every rank goes on with the same source, whatever it knows of this one
                    if place not in self.measured[-1].reports:
                        self.measured[-1].failed[place] = str(error)
                        self._end()
                    first = first or ValueError(f"{candidate.name}: {error}")
        return first

    def _measure(self, measured: Measured, model: VidTwin, source: WindowSource, number: int, place: int) -> None:
        candidate, progress = measured.candidate, self.progress
        shape = Shape.of(model, source.settings["frames"])

        def put(windows: Windows, incomplete: str | None) -> None:
            measured.reports[place] = report(source, windows, self.measures, shape, incomplete)
            measured.windows[place] = windows

        def snapshot(windows: Windows) -> None:
            put(windows, UNFINISHED)
            self.changed()

        try:
            windows = measure(
                model,
                source,
                self.measures,
                batch=self.batch,
                team=self.team,
                kept=self._kept(candidate),
                real=self._real,
                progress=None if progress is None else lambda done: progress(number, place, done),
                snapshot=snapshot,
            )
        except CutShort as short:
            put(short.windows, short.reason)
            self._end(measured.reports[place])
            raise short.cause from None
        if self.team.is_main:
            put(windows, None)
            self._end(measured.reports[place])

    def _end(self, found: dict[str, Any] | None = None) -> None:
        if self.team.is_main:
            if found is not None:
                self.finished(self.measured[-1].candidate, found)
            self.changed()

    def _kept(self, candidate: Candidate) -> Kept:
        if self.output is None or not self.team.is_main:
            return Kept()
        told = {"weights": candidate.digest, "networks": self.measures.digests}
        return Kept(self.output / PIECES_FOLDER, told | self._computing())

    def _computing(self) -> dict[str, Any]:
        """What may change the last digits of a value."""
        return {"batch": self.batch, "torch": torch.__version__, "device": self.device}

    def report(self) -> dict[str, Any]:
        """All results so far, as JSON has them."""
        return {"format": 2, "models": [_model_report(measured) for measured in self.measured]}

    def compared(self, baseline: str) -> list[dict[str, Any]]:
        """Each model beside the baseline: `model`, `source` and what `compare` says.

        Each comparison is worked out once, when both models have been measured, because it takes a while with many
        sources, and the results are written after every source and every minute.

        Args:
            baseline: the name of a candidate; until it has been measured there is nothing to say.
        """
        base = next((measured for measured in self.measured if measured.candidate.name == baseline), None)
        found = []
        for measured in self.measured if base is not None else ():
            assert base is not None
            if measured is base or not measured.candidate.windows_like(base.candidate):
                continue
            for place in sorted(measured.windows.keys() & base.windows.keys()):
                if UNFINISHED in (measured.reports[place]["incomplete"], base.reports[place]["incomplete"]):
                    continue
                name, source = measured.candidate.name, measured.reports[place]["source"]
                key = (baseline, name, place)
                if key not in self._comparisons:
                    self._comparisons[key] = compare(measured.windows[place], base.windows[place])
                found.append({"model": name, "baseline": baseline, "source": source, **self._comparisons[key]})
        return found

    def shown(self) -> list[tuple[str, list[str], list[Shown]]]:
        """The windows that a person should look at, with their videos.

        Returns:
            For each source, the models that have the same windows of it, and the windows.
        Raises:
            StoreError: the disk is full.
        """
        assert self.output is not None
        found = []
        groups: list[list[Measured]] = []
        for measured in self.measured:
            group = next((some for some in groups if some[0].candidate.windows_like(measured.candidate)), None)
            groups.append([measured]) if group is None else group.append(measured)
        for group in groups:
            for place, source in enumerate(group[0].candidate.sources):
                some = [measured for measured in group if place in measured.windows]
                if not some:
                    continue
                names = [measured.candidate.name for measured in some]
                chosen = choose({measured.candidate.name: measured.windows[place] for measured in some})
                models = {
                    measured.candidate.name: (measured.candidate.digest, measured.candidate.load) for measured in some
                }
                write_videos(chosen, source, models, self.output / SHOWN_FOLDER)
                found.append((source.describe(), names, chosen))
        return found


def _model_report(measured: Measured) -> dict[str, Any]:
    candidate = measured.candidate
    return {
        "model": candidate.name,
        "weights": candidate.weights,
        "digest": candidate.digest,
        "provenance": None if candidate.provenance is None else candidate.provenance.to_json(),
        "failed": [
            {"source": candidate.sources[place].describe(), "reason": reason}
            for place, reason in measured.failed.items()
        ],
        "results": [measured.reports[place] for place in sorted(measured.reports)],
    }


def json_text(document: Mapping[str, Any]) -> str:
    """A report as the text of a file; the same results are the same bytes."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"

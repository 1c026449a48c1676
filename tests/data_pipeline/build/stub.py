"""A stand-in for the clip cutter: fake clips from a text file, so that storage and faults are tested without a decoder.

A source file holds one word a line: `clip SIZE` gives a clip of SIZE bytes, `reject REASON` a rejection, `broken` an
undecodable file. The bytes of a clip follow from the file's text alone, as with the real cutter. `build` and
`build_here` do what `builder.build` does, with such clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from data_pipeline.build.builder import TASK_NAME, finish_build, plan_build
from data_pipeline.build.config import RunConfig, ShardsConfig
from data_pipeline.build.dataset_job import DatasetResult, run_missing
from data_pipeline.build.driver import UnitsRun
from data_pipeline.build.unit import UnitReport
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.result import CutResult, EncodedClip, Rejection
from data_pipeline.cut.video import UndecodableVideo
from data_pipeline.source.config import SplitConfig
from data_pipeline.store.base import Store
from data_pipeline.store.open import open_store

ENCODER = "stub-1"


def cut(path: Path, *, start: float | None = None, end: float | None = None) -> CutResult:
    """What the words of the file say."""
    text = path.read_text()
    clips, rejected = [], []
    for number, line in enumerate(text.splitlines()):
        word, _, value = line.partition(" ")
        if word == "broken":
            raise UndecodableVideo(f"{path}: broken on purpose")
        if word == "reject":
            rejected.append(
                Rejection(number=number, start=number, end=number + 1, reason=value, measured={"value": 0.123456789})
            )
            continue
        assert word == "clip", line
        seed = hashlib.sha256(f"{text}{number}".encode()).digest()
        clips.append(
            EncodedClip(
                number=number,
                data=(seed * (int(value) // 32 + 1))[: int(value)],
                start=float(number),
                end=float(number + 1),
                frames=8,
                height=256,
                width=256,
                fps_error=0.001,
                source_pts=[number + k / 8 for k in range(8)],
                measures={"motion": 1.5},
                phash=seed[:8].hex(),
            )
        )
    return CutResult(clips=clips, rejected=rejected, source={"fps": 25.0})


def run_unit(job: BuildJob, unit: int) -> UnitReport:
    """The body of a unit with such clips."""
    return Worker(job, cut).run(unit)


def build(
    config: ShardsConfig, body: Callable[[BuildJob, int], UnitReport] = run_unit, *, encoder: str = ENCODER
) -> DatasetResult:
    """`builder.build` with this body."""
    store = open_store(config.output)
    job, missing = plan_build(config, encoder, store)
    return finish_build(job, run_missing(job, missing, body, TASK_NAME), store)


def build_here(config: ShardsConfig) -> DatasetResult:
    """The same without Ray: the units are built one after another in this process."""
    store = open_store(config.output)
    job, missing = plan_build(config, ENCODER, store)
    for unit in missing:
        run_unit(job, unit)
    return finish_build(job, UnitsRun(done=len(missing)), store)


def config_of(source: str | Path, output: str | Path) -> ShardsConfig:
    """Units of four rows; a unit is tried twice."""
    return ShardsConfig(
        source=str(source), output=str(output), unit_rows=4, split=SplitConfig(val=0.3), run=RunConfig(attempts=2)
    )


def contents(store: Store) -> dict[str, str]:
    """SHA-256 of every object."""
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in store.keys()}


def write_sources(folder: Path, rows: int) -> Path:
    """A folder of `rows` sources of every kind; all with captions but each seventh."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ["clip 3000\nclip 70000", "clip 500", "reject too_short\nclip 1234", "reject too_small", "broken", "clip 9"]
    for number in range(rows):
        (folder / f"v{number:03d}.mp4").write_text(f"{kinds[number % len(kinds)]}")
        if number % 7 != 3:
            (folder / f"v{number:03d}.txt").write_text(f"caption of {number}")
    return folder

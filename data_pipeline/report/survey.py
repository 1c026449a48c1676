"""The contents of a dataset, for people: ledger, distributions, and random examples of accepted and refused clips.

The survey reads the committed units once, a few at a time; a dataset that is still being built is surveyed as far as it
is. The counts cover everything. Only what must be read out of the shards comes from a random draw of clips.
"""

from __future__ import annotations

import random
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from data_pipeline.dataset.fields import Fields
from data_pipeline.dataset.finalize import described
from data_pipeline.dataset.kind import CLIPS
from data_pipeline.dataset.ledger import Ledger
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.tar import BLOCK, members
from data_pipeline.dataset.units import CommittedUnit, committed_units, ordered_units
from data_pipeline.outside.documents import parse_json
from data_pipeline.report.config import SurveyConfig
from data_pipeline.report.refusals import Refusal, Refusals
from data_pipeline.report.stills import NoPicture, clip_strip
from data_pipeline.report.tally import Reservoir, Tally
from data_pipeline.store.base import Store

_READERS = 16


@dataclass(frozen=True, kw_only=True)
class AcceptedClip:
    """An accepted clip as it is stored."""

    key: str
    caption: str
    description: dict[str, Any]  # the sample's JSON
    picture: bytes | None  # JPEG
    no_picture: str = ""  # the reason why there is no picture


@dataclass(kw_only=True)
class Survey:
    """Everything that the page shows."""

    name: str
    plan: Plan
    committed: int  # units
    complete: bool  # the dataset has a dataset.json, and it is of this plan
    ledger: Ledger
    seconds: Tally  # of every clip
    video_bytes: Tally  # of every clip
    captions: Tally  # characters; every source row of the units that has a caption
    motion: Tally  # of the clips drawn
    source_fps: Tally
    source_side: Tally  # short side of the source, pixels
    drawn: int  # clips whose descriptions were read
    accepted: list[AcceptedClip]
    refused: dict[tuple[str, str], list[Refusal]]  # (kind, reason) -> examples


def survey(store: Store, config: SurveyConfig, source: Path | None = None) -> Survey:
    """Read a dataset.

    Args:
        source: the local file or folder that `--source` named at the build; pictures of refused sources are made of it.
    Raises:
        ValueError: the store has no plan, or a unit is damaged; the message has the remedy.
    """
    dataset = Dataset.open(store, CLIPS)
    plan = dataset.plan
    numbers = sorted(unit for unit in committed_units(store) if unit < plan.units)
    stream = _Stream(plan, PlanRows(dataset), config)
    for unit in ordered_units(dataset, numbers):
        stream.add(unit)
    drawn = sorted(stream.clips.items, key=lambda clip: (clip["name"], clip["offset"]))
    result = Survey(
        name=store.uri(),
        plan=plan,
        committed=len(numbers),
        complete=described(dataset) is not None,
        ledger=stream.ledger,
        seconds=stream.seconds,
        video_bytes=stream.video_bytes,
        captions=stream.captions,
        motion=Tally(),
        source_fps=Tally(),
        source_side=Tally(),
        drawn=len(drawn),
        accepted=[],
        refused={},
    )
    _describe_clips(store, drawn, result)
    chosen = random.Random(f"{config.seed}:pictures").sample(range(len(drawn)), min(config.pictures, len(drawn)))
    fps = Fraction(plan.settings["clip.fps"])
    result.accepted = [_accepted(store, drawn[position], fps) for position in sorted(chosen)]
    result.refused = stream.refusals.described(dataset, stream.rows, source)
    return result


class _Stream:
    """Collects counts and examples in one pass over the units."""

    def __init__(self, plan: Plan, rows: PlanRows, config: SurveyConfig) -> None:
        self.plan, self.rows, self.config = plan, rows, config
        self.ledger = Ledger()
        self.seconds, self.video_bytes, self.captions = Tally(), Tally(), Tally()
        self.clips: Reservoir[dict[str, Any]] = Reservoir(config.clips, f"{config.seed}:clips")
        self.refusals = Refusals(config.examples, config.seed)

    def add(self, unit: CommittedUnit) -> None:
        self.ledger.add(unit.record)
        self.seconds.add(count / self.plan.settings["clip.fps"] for count in unit.index.column("frames").to_pylist())
        self.video_bytes.add(unit.index.column("video_size").to_pylist())
        columns = ("key", "shard", "offset", "size", "video_offset", "frames")
        for clip in unit.index.select(columns).to_pylist():
            self.clips.offer(clip | {"name": unit.record.shards[clip["shard"]].name})
        if self.plan.segment_of(unit.unit).kind == "manifest":  # the rows of a retry were counted with their manifest
            lengths = pc.utf8_length(self.rows.table(unit.unit).column("caption").drop_null())
            self.captions.add(lengths.to_pylist())
        self.refusals.add(unit.unit, unit.record.rows)


def _describe_clips(store: Store, drawn: list[dict[str, Any]], result: Survey) -> None:
    """Count the values that only the samples' JSON has."""
    with ThreadPoolExecutor(_READERS) as pool:
        for described in pool.map(lambda clip: _description(store, clip), drawn):
            result.motion.add(_numbers(described["measures"], "motion"))
            result.source_fps.add(_numbers(described["source"], "fps"))
            sides = [*_numbers(described["source"], "width"), *_numbers(described["source"], "height")]
            if len(sides) == 2:
                result.source_side.add([min(sides)])


def _numbers(values: dict[str, Any], name: str) -> list[float]:
    """The value in a list, or an empty list if it is not known."""
    value = values.get(name)
    return [float(value)] if isinstance(value, int | float) and abs(value) <= sys.float_info.max else []


def _description(store: Store, clip: dict[str, Any]) -> dict[str, Any]:
    """The `<key>.json` of a sample; it lies between the sample's first tar header and the header of its mp4."""
    begin = clip["offset"] + BLOCK
    data = store.read(clip["name"], begin, clip["video_offset"] - BLOCK - begin)
    try:
        return _checked(data.rstrip(b"\0"))
    except ValueError as error:
        raise ValueError(
            f"{clip['name']}: the description of sample {clip['key']} is damaged; launch/verify_shards.py says more"
        ) from error


def _checked(description: bytes) -> dict[str, Any]:
    """The `.json` of a sample, with all that the page shows of it. Raises: ValueError where something is missing."""
    document = parse_json(description)
    fields = Fields(document)
    fields.measured("measures")
    fields.mapping("source")
    for name in ("start", "end"):
        fields.number(name)
    for name in ("width", "height"):
        fields.integer(name)
    for name in ("id", "split"):
        fields.text(name)
    return dict(document)


def _accepted(store: Store, clip: dict[str, Any], fps: Fraction) -> AcceptedClip:
    data = store.read(clip["name"], clip["offset"], clip["size"])
    try:
        files = {m.name.rpartition(".")[2]: data[m.offset : m.offset + m.size] for m in members(BytesIO(data + _ZEROS))}
        description, caption, video = _checked(files["json"]), files["txt"].decode(), files["mp4"]
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise ValueError(
            f"{clip['name']}: sample {clip['key']} is damaged; launch/verify_shards.py says more"
        ) from error
    try:
        picture, reason = clip_strip(video, clip["frames"], fps), ""
    except NoPicture as error:
        picture, reason = None, str(error)
    return AcceptedClip(key=clip["key"], caption=caption, description=description, picture=picture, no_picture=reason)


_ZEROS = bytes(BLOCK)  # zeros end a tar file, so `members` stops behind the sample

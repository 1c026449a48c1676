"""What is in a dataset, for people: ledger, distributions, and random examples of what was taken and what was not.

Streams over the committed units once, in memory for a few of them; a dataset in work is surveyed as far as it is.
Counts cover everything; only what has to be read out of the shards comes from a random draw of clips.
"""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from data_pipeline.finalize import CommittedUnit, committed_units, ordered_units, read_dataset
from data_pipeline.grow import taken_down
from data_pipeline.ledger import COMMITTED, QUARANTINED, REJECTED, TAKEN_DOWN, Ledger
from data_pipeline.plan import Plan, PlanRows, read_plan
from data_pipeline.stills import NoPicture, SourceStills, clip_strip
from data_pipeline.storage import Store
from data_pipeline.tally import Reservoir, Tally
from data_pipeline.tar import BLOCK, members

_READERS = 16
NOT_TRIED = frozenset({"crash", "timeout", "memory", "failure"})
"""Errors of quarantined rows whose sources are not opened again for a picture."""


@dataclass(frozen=True, kw_only=True)
class SurveyConfig:
    """How much is drawn at random."""

    clips: int = 2000  # clips whose descriptions are read for motion, source fps and source size
    pictures: int = 36  # accepted clips that are shown
    examples: int = 6  # rows or stretches shown for each reason
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.clips, self.pictures, self.examples) < 0 or self.pictures > self.clips:
            raise ValueError(
                f"clips={self.clips}, pictures={self.pictures}, examples={self.examples} must not be negative, and "
                "pictures are drawn from the clips: lower --pictures or raise --clips"
            )


@dataclass(frozen=True, kw_only=True)
class TakenClip:
    """An accepted clip as it is stored."""

    key: str
    caption: str
    description: dict[str, Any]  # the sample's JSON
    picture: bytes | None  # JPEG
    words: str = ""  # why there is no picture


@dataclass(kw_only=True)
class Refusal:
    """A row, or a stretch of one, that gave no clip."""

    unit: int
    row: int
    id: str
    kind: str  # rejected or quarantined
    reason: str
    start: float | None = None
    end: float | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    detail: str = ""
    video: str = ""
    caption: str | None = None
    picture: bytes | None = None
    words: str = ""  # why there is no picture


@dataclass(kw_only=True)
class Survey:
    """All that the page shows."""

    name: str
    plan: Plan
    committed: int  # units
    complete: bool  # dataset.json is there, of this plan
    ledger: Ledger
    seconds: Tally  # of every clip
    video_bytes: Tally  # of every clip
    captions: Tally  # characters; every source row of the units that has a caption
    motion: Tally  # of the clips drawn
    source_fps: Tally
    source_side: Tally  # short side of the source, pixels
    drawn: int  # clips whose descriptions were read
    taken: list[TakenClip]
    refused: dict[tuple[str, str], list[Refusal]]  # (kind, reason) -> examples


def survey(store: Store, config: SurveyConfig, source: Path | None = None) -> Survey:
    """Read a dataset.

    Args:
        source: what `--source` was at the build, where it is local: pictures of refused sources come from there.
    Raises:
        ValueError: there is no plan, or a unit is damaged; the message says how to mend it.
    """
    try:
        plan = read_plan(store)
    except FileNotFoundError:
        raise ValueError(f"{store.uri()} has no plan.json: it is not a dataset of launch/build_shards.py") from None
    numbers = sorted(unit for unit in committed_units(store) if unit < plan.units)
    stream = _Stream(plan, PlanRows(store, plan), config)
    for unit in ordered_units(store, plan, numbers):
        stream.add(unit)
    drawn = sorted(stream.clips.items, key=lambda clip: (clip["name"], clip["offset"]))
    result = Survey(
        name=store.uri(),
        plan=plan,
        committed=len(numbers),
        complete=_complete(store, plan),
        ledger=stream.ledger,
        seconds=stream.seconds,
        video_bytes=stream.video_bytes,
        captions=stream.captions,
        motion=Tally(),
        source_fps=Tally(),
        source_side=Tally(),
        drawn=len(drawn),
        taken=[],
        refused={},
    )
    _describe_clips(store, drawn, result)
    chosen = random.Random(f"{config.seed}:pictures").sample(range(len(drawn)), min(config.pictures, len(drawn)))
    fps = Fraction(plan.settings["clip.fps"])
    result.taken = [_taken(store, drawn[position], fps) for position in sorted(chosen)]
    result.refused = _refused(store, stream, source)
    return result


def _complete(store: Store, plan: Plan) -> bool:
    try:
        return bool(read_dataset(store)["plan"] == plan.digest)
    except FileNotFoundError:
        return False


class _Stream:
    """What one pass over the units collects."""

    def __init__(self, plan: Plan, rows: PlanRows, config: SurveyConfig) -> None:
        self.plan, self.rows, self.config = plan, rows, config
        self.ledger = Ledger()
        self.seconds, self.video_bytes, self.captions = Tally(), Tally(), Tally()
        self.clips: Reservoir[dict[str, Any]] = Reservoir(config.clips, f"{config.seed}:clips")
        self.refused: dict[tuple[str, str], Reservoir[Refusal]] = {}

    def add(self, unit: CommittedUnit) -> None:
        self.ledger.add(unit.record)
        self.seconds.add(count / self.plan.settings["clip.fps"] for count in unit.index.column("frames").to_pylist())
        self.video_bytes.add(unit.index.column("video_size").to_pylist())
        columns = ("key", "shard", "offset", "size", "video_offset", "frames")
        for clip in unit.index.select(columns).to_pylist():
            self.clips.offer(clip | {"name": unit.record["shards"][clip["shard"]]["name"]})
        if self.plan.segment_of(unit.unit).kind == "manifest":  # the rows of a retry were counted before
            lengths = pc.utf8_length(self.rows.table(unit.unit).column("caption").drop_null())
            self.captions.add(lengths.to_pylist())
        for fate in unit.record["rows"]:
            if fate.get("retry_of"):
                self._forget(fate["row"])
            for refusal in _refusals(unit.unit, fate):
                self._group(refusal).offer(refusal)

    def _group(self, refusal: Refusal) -> Reservoir[Refusal]:
        name = (refusal.kind, refusal.reason)
        if name not in self.refused:
            self.refused[name] = Reservoir(self.config.examples, f"{self.config.seed}:{name}")
        return self.refused[name]

    def _forget(self, row: int) -> None:
        """A row that was tried again is no example of its former error."""
        for (kind, _), group in self.refused.items():
            if kind == QUARANTINED:
                group.items = [item for item in group.items if item.row != row]


def _refusals(unit: int, fate: dict[str, Any]) -> Iterator[Refusal]:
    """The entries of one row of a commit record, as `Refusal`s without the row's own columns."""
    row, identity = fate["row"], fate["id"]
    if fate["fate"] == QUARANTINED:
        yield Refusal(
            unit=unit, row=row, id=identity, kind=QUARANTINED, reason=fate["error"], detail=fate.get("detail", "")
        )
        return
    stretches = fate.get("rejected", ())
    for item in stretches:
        yield Refusal(
            unit=unit,
            row=row,
            id=identity,
            kind=REJECTED,
            reason=item["reason"],
            start=item["start"],
            end=item["end"],
            measured=item["measured"],
        )
    if fate["fate"] != COMMITTED and not stretches:
        yield Refusal(
            unit=unit, row=row, id=identity, kind=REJECTED, reason=fate["reason"], measured=fate.get("measured", {})
        )


def _describe_clips(store: Store, drawn: list[dict[str, Any]], result: Survey) -> None:
    """Count what only the samples' JSON says."""
    with ThreadPoolExecutor(_READERS) as pool:
        for described in pool.map(lambda clip: _description(store, clip), drawn):
            result.motion.add(_numbers(described["measures"], "motion"))
            result.source_fps.add(_numbers(described["source"], "fps"))
            sides = [*_numbers(described["source"], "width"), *_numbers(described["source"], "height")]
            if len(sides) == 2:
                result.source_side.add([min(sides)])


def _numbers(values: dict[str, Any], name: str) -> list[float]:
    """The value as a list of one, or of none where it was not known."""
    value = values.get(name)
    return [float(value)] if isinstance(value, int | float) else []


def _description(store: Store, clip: dict[str, Any]) -> dict[str, Any]:
    """The `<key>.json` of a sample: it lies between the sample's first header and that of the mp4."""
    begin = clip["offset"] + BLOCK
    data = store.read(clip["name"], begin, clip["video_offset"] - BLOCK - begin)
    try:
        return dict(json.loads(data.rstrip(b"\0")))
    except ValueError as error:
        raise ValueError(
            f"{clip['name']}: the description of sample {clip['key']} is damaged; launch/verify_shards.py says more"
        ) from error


def _taken(store: Store, clip: dict[str, Any], fps: Fraction) -> TakenClip:
    data = store.read(clip["name"], clip["offset"], clip["size"])
    try:
        found = {m.name.rpartition(".")[2]: data[m.offset : m.offset + m.size] for m in members(BytesIO(data + _ZEROS))}
        description, caption, video = json.loads(found["json"]), found["txt"].decode(), found["mp4"]
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise ValueError(
            f"{clip['name']}: sample {clip['key']} is damaged; launch/verify_shards.py says more"
        ) from error
    try:
        picture, words = clip_strip(video, clip["frames"], fps), ""
    except NoPicture as why:
        picture, words = None, str(why)
    return TakenClip(key=clip["key"], caption=caption, description=description, picture=picture, words=words)


_ZEROS = bytes(BLOCK)  # ends the walk over one sample's members


def _refused(store: Store, stream: _Stream, source: Path | None) -> dict[tuple[str, str], list[Refusal]]:
    """The examples, with the columns of their rows and, where there can be one, a picture."""
    gone = taken_down(store)
    groups = {name: sorted(group.items, key=lambda item: item.row) for name, group in sorted(stream.refused.items())}
    groups = {name: items for name, items in groups.items() if items}
    for item in sorted((item for items in groups.values() for item in items), key=lambda item: item.unit):
        if item.reason == TAKEN_DOWN or item.id in gone:
            item.id, item.measured, item.detail = "", {}, ""
            item.words = "taken down on demand: nothing of it is shown"
            continue
        row = next(row for row in stream.rows.unit(item.unit) if row["row"] == item.row)
        item.video, item.caption = row["video"], row["caption"]
        if item.start is None:
            item.start, item.end = row["start"], row["end"]
    _picture(stream.plan, [item for items in groups.values() for item in items if not item.words], source)
    return groups


def _picture(plan: Plan, items: Iterable[Refusal], source: Path | None) -> None:
    """Fill in `picture`, or in `words` why there is none."""
    with ExitStack() as stack:
        here: set[int] = set()
        stills = None
        if source is not None:
            here = _segments_of(plan, source)
            stills = stack.enter_context(SourceStills((source if source.is_dir() else source.parent).absolute()))
        for item in items:
            if stills is None:
                item.words = "no picture: the report was made without --source"
            elif plan.segment_of(item.unit).parent not in here:
                item.words = "no picture: the row is of another manifest than --source"
            elif item.kind == QUARANTINED and item.reason in NOT_TRIED:
                item.words = f"no picture: not opened again after {item.reason}"
            else:
                try:
                    item.picture = stills.still(item.video, item.start, item.end)
                except NoPicture as why:
                    item.words = str(why)


def _segments_of(plan: Plan, source: Path) -> set[int]:
    """Positions of the manifests of the plan that `source` is: the same file by content, or a folder of that name.

    Raises: ValueError when there is none: its videos would be other ones than those of the dataset.
    """
    if not source.exists():
        raise ValueError(f"source {str(source)!r} does not exist; give what the dataset was built from, or no --source")
    digest = ""
    if source.is_file():
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    found = {
        position
        for position, segment in enumerate(plan.segments)
        if segment.kind == "manifest"
        and segment.file_sha256 == digest
        and (digest or Path(segment.name).name == source.absolute().name)
    }
    if not found:
        names = ", ".join(repr(segment.name) for segment in plan.segments if segment.kind == "manifest")
        raise ValueError(f"source {str(source)!r} is not what the dataset was built from, which is {names}")
    return found

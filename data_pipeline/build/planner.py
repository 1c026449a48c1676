"""Makes the plan of a dataset, or checks that the existing plan is for the same work.

Memory stays bounded for any number of rows, because `Spool` keeps the rows on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.further_fetches import further_fetches
from data_pipeline.build.hashes import among, text_hashes
from data_pipeline.build.refusal import refusal
from data_pipeline.build.scratch import make_scratch
from data_pipeline.build.spool import Spool
from data_pipeline.dataset.config import Duplicates
from data_pipeline.dataset.kind import CLIPS
from data_pipeline.dataset.plan import PART_ROWS, PLAN_KEY, Dataset, Plan, Segment, read_plan
from data_pipeline.dataset.plan_parts import read_part
from data_pipeline.dataset.plan_rows import PlanRow, write_parts
from data_pipeline.dataset.row_tables import rechunked
from data_pipeline.dataset.settings_difference import refuse_differences, refuse_other_kind, settings_difference
from data_pipeline.dataset.unfinished import commands, missing_units, refuse_unfinished
from data_pipeline.dataset.unit_cuts import cut_within, unit_cuts, wanted_and_longest
from data_pipeline.dataset.units import committed_units
from data_pipeline.source.manifest import ReadOptions, open_places
from data_pipeline.source.places import Places, find_places
from data_pipeline.source.rows import PROBLEM, ROW_SCHEMA
from data_pipeline.store.base import Store
from data_pipeline.store.counted import counted
from data_pipeline.store.open import open_store
from data_pipeline.store.private_folder import private_folder

_LISTED = 20
"""Number of duplicate ids that an error message lists; further ones are only counted."""


@dataclass(frozen=True)
class Planned:
    """A plan, and the place of this run's source in it."""

    plan: Plan
    base: str  # folder or s3://bucket/prefix that relative paths of the source's videos start from
    parent: int  # position of the source's segment
    fresh: bool  # whether this call wrote the segment
    folders: tuple[str, ...] = ()  # those of this machine that the source lies in, as `Places.folders`


def make_plan(config: ShardsConfig, encoder: str, store: Store, *, append: bool = False) -> Planned:
    """Write the plan of `config.source` to the store, or check the existing plan against it.

    Args:
        encoder: version of the clip encoder. An output that was planned for another version is refused.
        store: the output.
        append: when the output was planned from other manifests, add this one as new units.
    Raises:
        ValueError: a scratch folder that cannot be made, a wrong source row, duplicate ids, an output that was
            planned from other settings, another encoder or (without `append`) another manifest, with the difference,
            or (with `append`) an output with units that are not committed. Nothing was written then.
    """
    make_scratch(config.run.scratch)
    with _places(config) as places:
        old = _existing(store)
        base, fingerprint = places.base, places.fingerprint(config.columns)
        if old is not None:
            refuse_other_settings(Dataset(store, old), config, encoder)
            known = _position(old, lambda segment: bool(fingerprint) and segment.file_sha256 == fingerprint)
            if known is not None:
                return Planned(old, base, known, False, places.folders)
        with tempfile.TemporaryDirectory(prefix="vidtwin-plan-", dir=_scratch(config)) as folder:
            spool = Spool(open_places(places, _read_options(config)), Path(folder), base)
            if old is not None:
                known = _position(old, lambda segment: segment.digest == spool.digest)
                if known is not None:
                    return Planned(old, base, known, False, places.folders)
                if not append:
                    _refuse_other_manifest(Dataset(store, old), spool)
                refuse_unfinished(Dataset(store, old))
            new = old or Plan(encoder=encoder, settings=config.plan_settings(), segments=())
            elsewhere = _rows_with_ids_of(spool, Dataset(store, new))
            segment = _segment(spool, config, fingerprint, new, elsewhere)
            if len(spool.runs.several()) or cut_within(segment.cuts, spool.runs.starts):
                rows = spool.planned_rows(elsewhere, segment.first_row - 1)
                _say_what_is_fetched_again(spool, rows, segment, config, Path(folder))
            write_parts(store, segment, spool.planned_rows(elsewhere, segment.first_row - 1))
            new = new.grown(segment)
            if old is not None:
                store.write(PLAN_KEY, new.to_json())
            elif not store.put_if_absent(PLAN_KEY, new.to_json()) and read_plan(store) != new:
                raise ValueError(f"{store.uri()} was planned by another run meanwhile; run the same command again")
    return Planned(new, base, len(new.segments) - 1, True, places.folders)


def _scratch(config: ShardsConfig) -> Path:
    """Where temporary folders of the driver are made."""
    return Path(config.run.scratch) if config.run.scratch else private_folder("scratch")


def _read_options(config: ShardsConfig) -> ReadOptions:
    return ReadOptions(
        columns=config.columns,
        rows=config.rows,
        needs_caption=config.caption.required,
        untrusted=config.sources.untrusted,
        say=partial(print, flush=True),
    )


def _position(plan: Plan, same: Callable[[Segment], bool]) -> int | None:
    """Position of the manifest segment that satisfies a condition; None when no segment does."""
    for position, segment in enumerate(plan.segments):
        if segment.kind == "manifest" and same(segment):
            return position
    return None


def _existing(store: Store) -> Plan | None:
    try:
        return read_plan(store)
    except FileNotFoundError:
        return None


def _segment(spool: Spool, config: ShardsConfig, file_sha256: str, plan: Plan, elsewhere: dict[str, int]) -> Segment:
    """The segment of a spooled manifest at the end of a plan."""
    duplicates = spool.duplicates()
    if config.duplicates is Duplicates.ERROR:
        _refuse_duplicates(spool.name, duplicates, elsewhere)
    return Segment(
        kind="manifest",
        parent=len(plan.segments),
        name=spool.name.rpartition("/")[2],
        digest=spool.digest,
        file_sha256=file_sha256,
        rows=spool.rows,
        duplicates=sum(len(rows) - 1 for rows in duplicates.values()) + len(elsewhere),
        first_row=plan.rows + 1,
        first_unit=plan.units,
        cuts=unit_cuts(spool.runs.starts, spool.rows, *wanted_and_longest(config.unit_rows, spool.rows)),
    )


def _say_what_is_fetched_again(
    spool: Spool, rows: Iterator[pa.RecordBatch], segment: Segment, config: ShardsConfig, folder: Path
) -> None:
    """Tell which fetches the order of the rows and the length of the units cost beyond one for each video."""

    def needs_video(row: PlanRow) -> bool:
        return refusal(config, frozenset(), row) is None  # rows that were taken down are merged into their first ones

    again = further_fetches(rows, spool.runs, segment.cuts, needs_video, folder)
    if again.apart:
        print(
            f"{spool.name}: the rows of {counted(again.videos, 'video')} do not all stand beside each other, which "
            f"takes {counted(again.apart, 'further fetch', 'further fetches')}; launch/make_manifest.py sort brings "
            "them together",
            flush=True,
        )
    if again.within:
        print(
            f"{spool.name}: {counted(again.within, 'cut')} between units within the rows of one video, which the next "
            "unit reads again; a larger unit_rows avoids that",
            flush=True,
        )


def _refuse_duplicates(name: str, duplicates: dict[str, list[int]], elsewhere: dict[str, int]) -> None:
    lines = [f"{identity!r} in rows {', '.join(map(str, rows))}" for identity, rows in duplicates.items()]
    lines += [f"{identity!r} is row {row} of the dataset already" for identity, row in elsewhere.items()]
    if elsewhere and not duplicates:
        remedy = "write a manifest of the rows alone that the dataset does not have yet, and append that one"
    else:
        remedy = (
            "make them unique in the `id` column, or plan with duplicates=merge to keep the first row of each (a "
            "setting of the first build of a dataset)"
        )
    if lines:
        more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
        raise ValueError(
            f"{name}: {len(lines)} ids stand for more than one row; {remedy}:\n  "
            + ";\n  ".join([*lines[:_LISTED], *more])
        )


def _rows_with_ids_of(spool: Spool, dataset: Dataset) -> dict[str, int]:
    """Id -> row of the plan, for the ids of a manifest that earlier manifests also have."""
    segments = dataset.plan.segments
    if not segments:
        return {}
    hashes = np.sort(np.concatenate([text_hashes(batch.column("id")) for batch in spool.batches()]))
    suspects: dict[str, int] = {}
    for segment in segments:
        if segment.kind == "manifest":
            for key in segment.part_keys:
                table = read_part(dataset.store, key, ["id", "row"])
                chosen = table.filter(pa.array(among(text_hashes(table.column("id")), hashes)))
                suspects.update(zip(chosen["id"].to_pylist(), chosen["row"].to_pylist(), strict=True))
    if not suspects:
        return {}
    own = {
        identity
        for batch in spool.batches()
        for identity in batch.filter(pc.equal(batch.column(PROBLEM), ""))["id"].to_pylist()
        if identity in suspects
    }
    return {identity: row for identity, row in suspects.items() if identity in own}


def refuse_other_settings(old: Dataset, config: ShardsConfig, encoder: str) -> None:
    """Raises: ValueError with every setting that differs from those of the plan."""
    refuse_other_kind(old, CLIPS)
    difference = settings_difference(old.plan.settings, config.plan_settings())
    if old.plan.encoder != encoder:
        difference.append(f"clip encoder: {old.plan.encoder} -> {encoder}")
    refuse_differences(old.store, difference)


def _refuse_other_manifest(old: Dataset, spool: Spool) -> None:
    segment = old.plan.segments[0]
    difference = [f"rows: were {segment.rows}, are {spool.rows}"] if segment.rows != spool.rows else []
    difference.append(_first_different_row(segment, spool, old.store))
    missing = missing_units(old.plan, committed_units(old.store))
    remedy = (
        "or --append to add this one as new units"
        if not missing
        else f"or complete the {len(missing)} units that are not committed from their plan: "
        f"{' ; then: '.join(commands(old, missing))}"
    )
    raise ValueError(
        f"{old.store.uri()} was planned from another manifest; use the old one, another output, {remedy}:\n  "
        + "\n  ".join(difference)
    )


def _first_different_row(segment: Segment, spool: Spool, store: Store) -> str:
    parts = rechunked(spool.batches(), chain(segment.part_lengths, repeat(PART_ROWS)))
    for key, new in zip(segment.part_keys, parts, strict=False):
        old = read_part(store, key)
        for was, now in zip(old.to_pylist(), new.to_pylist(), strict=False):
            for column in ROW_SCHEMA.names:
                before = was.get(column, "")  # a part without wrong rows has no column of problems
                if before != now[column]:
                    return f"row {now['row']}, column {column}: was {before!r}, is {now[column]!r}"
    return f"rows 1 to {min(segment.rows, spool.rows)} are the same"


@contextmanager
def _places(config: ShardsConfig) -> Iterator[Places]:
    """Where the rows come from. Manifests on S3 are copied to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="vidtwin-manifest-", dir=_scratch(config)) as temporary:
        sources = [config.source, *config.more_sources]
        untrusted = config.sources.untrusted
        opened = partial(
            open_store, retries=config.sources.retries, profile=config.sources.s3_profile, direct=untrusted
        )
        yield find_places(sources, Path(temporary), opened, untrusted=untrusted)

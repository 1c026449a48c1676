"""Plans quarantined rows again: the plan gets a further segment with units for them. No committed unit changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from data_pipeline.dataset.fields import canonical_json
from data_pipeline.dataset.plan import PLAN_KEY, Dataset, Segment
from data_pipeline.dataset.plan_parts import PLAN_SCHEMA
from data_pipeline.dataset.plan_rows import PlanRows, write_parts
from data_pipeline.dataset.row_fates import QUARANTINED, RETRIED_ERROR
from data_pipeline.dataset.unfinished import refuse_without_folder
from data_pipeline.dataset.unit_cuts import unit_cuts, video_starts, wanted_and_longest
from data_pipeline.dataset.units import ordered_units, require_complete


def plan_retry(dataset: Dataset, parent: int, *, has_folder: bool = True) -> Dataset:
    """Add new units for the rows of one manifest that are quarantined now.

    Args:
        parent: position of the manifest's segment.
        has_folder: whether the folder is known that relative videos start from.
    Returns:
        The dataset with the grown plan, or the same dataset when none of these rows is quarantined.
    Raises:
        ValueError: units are missing, so that the fate of their rows is unknown; or a row has a relative video, and
            its folder is not known. Nothing was written then.
    """
    require_complete(dataset)
    plan = dataset.plan
    errors: dict[int, str] = {}  # quarantined row -> its error
    planned_in: set[int] = set()  # units of the manifest with quarantined rows
    for unit in ordered_units(dataset):
        segment = plan.segment_of(unit.unit)
        if segment.parent != parent:
            continue
        for fate in unit.record.rows:
            errors.pop(fate.row, None)
            if fate.fate == QUARANTINED:
                errors[fate.row] = fate.error
                if segment.kind == "manifest":
                    planned_in.add(unit.unit)
    if not errors:
        return dataset
    rows = PlanRows(dataset)

    def chosen() -> Iterator[pa.RecordBatch]:
        for unit in sorted(planned_in):
            again = [row for row in rows.table(unit).to_pylist() if row["row"] in errors]
            yield pa.RecordBatch.from_pylist(
                [row | {RETRIED_ERROR: errors[row["row"]]} for row in again], schema=PLAN_SCHEMA
            )

    videos = []
    for batch in chosen():
        if not has_folder:
            refuse_without_folder(plan.segments[parent].name, pa.Table.from_batches([batch]))
        videos += batch["video"].to_pylist()
    identity = canonical_json([len(plan.segments), sorted(errors.items())])
    segment = Segment(
        kind="retry",
        parent=parent,
        name=plan.segments[parent].name,
        digest=hashlib.sha256(identity).hexdigest(),
        file_sha256="",
        rows=len(errors),
        duplicates=0,
        first_row=0,
        first_unit=plan.units,
        cuts=unit_cuts(video_starts(videos), len(videos), *wanted_and_longest(0, len(videos))),
    )
    write_parts(dataset.store, segment, chosen())
    grown = plan.grown(segment)
    dataset.store.write(PLAN_KEY, grown.to_json())
    return Dataset(dataset.store, grown)

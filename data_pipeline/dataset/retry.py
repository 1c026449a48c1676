"""Quarantined rows tried again: the plan grows by a segment of new units for them; no committed unit changes."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from data_pipeline.dataset.ledger import QUARANTINED
from data_pipeline.dataset.plan import PLAN_KEY, PLAN_SCHEMA, Plan, PlanRows, Segment, automatic_unit_rows, write_parts
from data_pipeline.dataset.units import canonical_json, ordered_units, require_complete
from data_pipeline.store.base import Store


def plan_retry(store: Store, plan: Plan, parent: int) -> Plan:
    """Add the rows of one manifest that are quarantined now as new units; the plan itself when there are none.

    Args:
        parent: position of the manifest's segment.
    Raises:
        ValueError: units are missing, so it is not known what is quarantined.
    """
    require_complete(store, plan)
    waiting: dict[int, str] = {}  # row -> its error
    homes: dict[int, list[int]] = {}  # unit -> its quarantined rows
    for unit in ordered_units(store, plan):
        segment = plan.segment_of(unit.unit)
        if segment.parent != parent:
            continue
        for fate in unit.record["rows"]:
            waiting.pop(fate["row"], None)
            if fate["fate"] == QUARANTINED:
                waiting[fate["row"]] = fate["error"]
                if segment.kind == "manifest":
                    homes.setdefault(unit.unit, []).append(fate["row"])
    if not waiting:
        return plan
    unit_rows = automatic_unit_rows(len(waiting))
    identity = canonical_json([len(plan.segments), sorted(waiting.items())])
    segment = Segment(
        kind="retry",
        parent=parent,
        name=plan.segments[parent].name,
        digest=hashlib.sha256(identity).hexdigest(),
        file_sha256="",
        rows=len(waiting),
        duplicates=0,
        first_row=0,
        unit_rows=unit_rows,
        first_unit=plan.units,
        units=-(-len(waiting) // unit_rows),
    )
    rows = PlanRows(store, plan)
    chosen = (
        pa.RecordBatch.from_pylist(
            [row | {"retry_of": waiting[row["row"]]} for row in rows.unit(unit) if row["row"] in waiting],
            schema=PLAN_SCHEMA,
        )
        for unit in sorted(homes)
    )
    write_parts(store, segment, (batch for batch in chosen if batch.num_rows))
    grown = plan.grown(segment)
    store.write(PLAN_KEY, grown.to_json())
    return grown

"""Refuses a row without a look at its video, so that the video of a refused row is never fetched."""

from __future__ import annotations

from data_pipeline.build.config import ShardsConfig
from data_pipeline.cut.result import Measured, Rejection
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.dataset.row_fates import TAKEN_DOWN, WRONG_ROW
from data_pipeline.source.row_rules import caption_problem


def refusal(config: ShardsConfig, taken_down: frozenset[str], row: PlanRow) -> Rejection | None:
    """Why a row is refused without a look at its video; None where the video decides.

    Args:
        taken_down: ids of rows that must not come back into the dataset.
    """
    if row.id in taken_down:
        return _of_row(TAKEN_DOWN, {})
    if row.problem:
        return _of_row(WRONG_ROW, {"problem": row.problem})
    if row.duplicate_of is not None:
        return _of_row("duplicate_id", {"first_row": row.duplicate_of})
    if problem := caption_problem(row.caption, config.caption):
        return _of_row(*problem)
    return None


def _of_row(reason: str, measured: Measured) -> Rejection:
    return Rejection(number=None, start=0.0, end=0.0, reason=reason, measured=measured)

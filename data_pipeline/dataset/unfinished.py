"""What an unfinished dataset of clips lacks, and the command that goes on with it. Every refusal names that command."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from data_pipeline.dataset.finalize import described
from data_pipeline.dataset.kind import CLIPS
from data_pipeline.dataset.plan import Dataset, Plan, Segment
from data_pipeline.dataset.plan_parts import read_part
from data_pipeline.dataset.units import committed_units
from data_pipeline.source.names import MANIFEST_SUFFIXES, starts_from_a_folder
from data_pipeline.source.rows import PROBLEM

_SCRIPT = "python launch/build_shards.py"
_OF_SEVERAL = re.compile(r" and \d+ more$")
"""How the name of several sources ends (`data_pipeline.source.places.Places.name`)."""


def missing_units(plan: Plan, committed: set[int]) -> list[int]:
    """The units of a plan that have no commit record, in order."""
    return [unit for unit in range(plan.units) if unit not in committed]


def missing_by_manifest(plan: Plan, missing: Iterable[int]) -> Counter[int]:
    """Position of a manifest's segment -> how many of these units take their rows from that manifest."""
    return Counter(plan.segment_of(unit).parent for unit in missing)


def refuse_unfinished(dataset: Dataset) -> None:
    """Refuse what only a dataset without missing units can take, before anything is written.

    Raises:
        ValueError: units are not committed; the message names the commands that build them.
    """
    missing = missing_units(dataset.plan, committed_units(dataset.store))
    if missing:
        raise ValueError(
            f"{len(missing)} units of {dataset.store.uri()} are not committed, and nothing was changed; "
            f"complete them first: {' ; then: '.join(commands(dataset, missing))}"
        )


def commands(dataset: Dataset, missing: list[int]) -> list[str]:
    """The commands that build these units, one for each manifest, in the order of the manifests.

    The last command also finalizes the dataset. A command builds from the rows in the plan, so it works when the
    manifest has been lost. Only where the videos are relative, the command needs the folder that the videos start from.
    """
    output = shlex.quote(dataset.store.uri())
    found = []
    for parent in sorted(missing_by_manifest(dataset.plan, missing)):
        segment = dataset.plan.segments[parent]
        unit = next(unit for unit in missing if dataset.plan.segment_of(unit).parent == parent)
        source = f" --source {_place(segment)}" if _has_relative_videos(dataset, unit) else ""
        found.append(f"{_SCRIPT} --output {output} --from-plan{source}")
    return found


def next_step(dataset: Dataset) -> str:
    """One line for `--status`: the command that goes on with a dataset of clips, "" for a dataset of another kind."""
    if dataset.plan.kind is not CLIPS:
        return ""
    missing = missing_units(dataset.plan, committed_units(dataset.store))
    if missing:
        return f"go on with: {' ; then: '.join(commands(dataset, missing))}"
    output = shlex.quote(dataset.store.uri())
    if described(dataset) is None:
        return f"finalize it with: {_SCRIPT} --output {output} --from-plan"
    return f"check it with: python launch/verify_shards.py --shards {output}"


def _place(segment: Segment) -> str:
    """The manifest's place as a command names it: the plan knows the name, but not the folder.

    The videos of several sources start from the folder that these have in common, and the plan does not know its name.
    """
    if _OF_SEVERAL.search(segment.name):
        return "FOLDER"
    if segment.name.lower().endswith(MANIFEST_SUFFIXES):
        return f"FOLDER/{shlex.quote(segment.name)}"
    return shlex.quote(segment.name)


def _has_relative_videos(dataset: Dataset, unit: int) -> bool:
    """Whether a video in the part file of a unit is a relative path."""
    segment = dataset.plan.segment_of(unit)
    return bool(_relative_videos(read_part(dataset.store, segment.part_key(segment.part_of(unit)))))


def refuse_without_folder(name: str, rows: pa.Table) -> None:
    """Refuse rows of a plan whose videos are relative paths, because nothing says which folder they start from.

    Args:
        name: of their manifest.
        rows: of PLAN_SCHEMA, also with the column of problems.
    Raises:
        ValueError: naming the first such video.
    """
    for video in _relative_videos(rows)[:1]:
        raise ValueError(
            f"{name}: the video {video!r} is a relative path; add --source FOLDER, the folder that the videos of this "
            "manifest start from"
        )


def _relative_videos(rows: pa.Table) -> list[str]:
    """The videos that are relative paths. A wrong row is rejected without a look at its video, so it has none."""
    problems = rows[PROBLEM].to_pylist() if PROBLEM in rows.column_names else [""] * rows.num_rows
    videos = zip(rows["video"].to_pylist(), problems, strict=True)
    return [video for video, problem in videos if not problem and starts_from_a_folder(video)]

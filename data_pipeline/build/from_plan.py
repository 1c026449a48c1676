"""Builds missing units from the plan alone, which holds all rows: the manifest itself may be lost or have changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import Planned, refuse_other_settings
from data_pipeline.build.scratch import make_scratch
from data_pipeline.dataset.kind import CLIPS
from data_pipeline.dataset.plan import PLAN_KEY, Dataset, Plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.unfinished import missing_by_manifest, missing_units, refuse_without_folder
from data_pipeline.dataset.units import committed_units
from data_pipeline.source.names import MANIFEST_SUFFIXES
from data_pipeline.source.places import common_base, local_folders, several
from data_pipeline.store.base import Store


def plan_words(store: Store) -> list[str]:
    """The settings of the plan on a store as words `key=value`, so that a command need not repeat them.

    Raises:
        ValueError: there is no plan of clips, or a damaged one.
    """
    settings = Dataset.open(store, CLIPS).plan.settings
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def no_source(output: str) -> str:
    """The value of `source=` where the command names none: the plan itself is where the rows come from."""
    return f"{output.rstrip('/')}/{PLAN_KEY}"


def planned_already(config: ShardsConfig, encoder: str, store: Store) -> Planned:
    """The plan on the store, and the manifest in it whose units this run builds. The store is only read.

    `config.source` is the folder that relative videos start from, or the place of a manifest (which may be lost) in
    that folder. The manifest is the one of that name; without such a name, it is the first one with missing units, or
    the only one. Several sources are those that were planned together, in their order: their videos start from the
    folder that these have in common.

    Raises:
        ValueError: a scratch folder that cannot be made, no plan, other settings or another encoder, a name that no
            manifest of the plan has, or relative videos and no folder that they start from.
    """
    make_scratch(config.run.scratch)
    dataset = Dataset.open(store, CLIPS)
    refuse_other_settings(dataset, config, encoder)
    missing = missing_units(dataset.plan, committed_units(store))
    parent = _manifest(dataset.plan, missing, config)
    if config.source == no_source(config.output) and not config.more_sources:
        _refuse_relative_videos(dataset, [unit for unit in missing if dataset.plan.segment_of(unit).parent == parent])
        return Planned(dataset.plan, "", parent, fresh=False)
    folders = [_folder(source) for source in _sources(config)]
    return Planned(dataset.plan, common_base(folders)[0], parent, False, local_folders(folders))


def _sources(config: ShardsConfig) -> list[str]:
    return [source.rstrip("/") or "/" for source in (config.source, *config.more_sources)]


def _manifest(plan: Plan, missing: list[int], config: ShardsConfig) -> int:
    """Position of the segment of the manifest that `source=` names, or else of the first one with missing units."""
    first, *more = _sources(config)
    name = several(first.rpartition("/")[2], len(more))
    manifests = [position for position, segment in enumerate(plan.segments) if segment.kind == "manifest"]
    unfinished = sorted(missing_by_manifest(plan, missing))
    called = [position for position in manifests if plan.segments[position].name == name]
    if called:
        return next((position for position in called if position in unfinished), called[0])
    if more or name.lower().endswith(MANIFEST_SUFFIXES):
        names = ", ".join(repr(plan.segments[position].name) for position in manifests)
        raise ValueError(f"source={config.source}: no manifest of the plan is called {name!r}; it was made of {names}")
    return unfinished[0] if unfinished else manifests[0]


def _folder(source: str) -> str:
    """The folder or address that the relative videos of a source start from. Raises: ValueError where there is none."""
    place = source
    if place.lower().endswith(MANIFEST_SUFFIXES) and not Path(place).is_dir():
        place = place.rpartition("/")[0] if "://" in place else str(Path(os.path.expanduser(place)).absolute().parent)
    if "://" in place:
        return place
    folder = Path(os.path.expanduser(place)).absolute()
    if not folder.is_dir():
        raise ValueError(f"source={source}: {folder} is no folder; name the one that relative videos start from")
    return str(folder)


def _refuse_relative_videos(dataset: Dataset, units: list[int]) -> None:
    rows = PlanRows(dataset)
    for unit in units:
        refuse_without_folder(dataset.plan.segments[dataset.plan.segment_of(unit).parent].name, rows.table(unit))

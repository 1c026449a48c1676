"""Makes the plan of a dataset of latents, or checks that the existing plan is for the same latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.latent_records import LatentSettings
from data_pipeline.dataset.plan import PLAN_KEY, Dataset, Plan, Segment, read_plan
from data_pipeline.dataset.settings_difference import refuse_differences, refuse_other_kind, settings_difference
from data_pipeline.latents.reconcile import Changes, reconcile
from data_pipeline.latents.segments import add_segments, with_segments
from data_pipeline.latents.source import ClipsSource
from data_pipeline.store.base import Store


@dataclass(frozen=True)
class Planned:
    """A plan, and what was done to make the latents those of the clips as they are now."""

    dataset: Dataset
    fresh: bool  # whether nothing was planned before
    changes: Changes


def plan_latents(
    source: ClipsSource,
    store: Store,
    settings: LatentSettings,
    encoder: str,
    scratch: str | None = None,
    *,
    retry: bool = False,
) -> Planned:
    """Plan all clips of the source, or bring an existing plan and what is encoded already up to date with the source.

    Args:
        store: the output.
        encoder: version of program, torch and decoder.
        scratch: folder for temporary files; None takes the system's.
        retry: whether clips that could not be read are planned again.
    Raises:
        ValueError: the output is of another kind, model, settings or versions, with the difference.
    """
    try:
        old = read_plan(store)
    except FileNotFoundError:
        return Planned(_first_plan(source, store, settings, encoder), True, Changes())
    _refuse_other_settings(Dataset(store, old), settings, encoder)
    dataset, changes = reconcile(Dataset(store, old), source, scratch, retry=retry)
    return Planned(dataset, False, changes)


def _first_plan(source: ClipsSource, store: Store, settings: LatentSettings, encoder: str) -> Dataset:
    segments: list[Segment] = []
    add_segments(store, segments, source, source.tables())
    plan = with_segments(Plan(encoder=encoder, settings=settings.to_settings(), segments=()), segments)
    if not store.put_if_absent(PLAN_KEY, plan.to_json()) and read_plan(store) != plan:
        raise ValueError(f"{store.uri()} was planned by another run meanwhile; run the same command again")
    return Dataset(store, plan)


def _refuse_other_settings(old: Dataset, settings: LatentSettings, encoder: str) -> None:
    refuse_other_kind(old, LATENTS)
    before, now = old.plan.settings, settings.to_settings()
    difference = settings_difference(_as_set(before), _as_set(now))
    weights = [str(found["model.weights"])[:12] for found in (before, now)]
    if before["model.weights"] == now["model.weights"]:
        difference = difference or settings_difference(before, now)
    else:  # everything else that a model has differs with it
        difference = [line for line in difference if not line.startswith("model.")]
        difference.insert(0, f"weights of the model: {weights[0]} -> {weights[1]}")
    if old.plan.encoder != encoder:
        difference.append(f"versions: {old.plan.encoder} -> {encoder}")
    refuse_differences(old.store, difference)


def _as_set(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's settings as a user sets them: the shapes follow from the model, windows.frames and stored.logvar."""
    shapes = [key for key in settings if key.startswith("stored.shapes.")]
    rest = {key: value for key, value in settings.items() if key not in shapes}
    return rest | {"stored.logvar": any(key.endswith("logvar") for key in shapes)}

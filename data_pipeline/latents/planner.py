"""Makes the plan of a dataset of latents, or checks that the existing plan is for the same latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_pipeline.dataset.latent_records import LatentSettings
from data_pipeline.dataset.plan import PLAN_KEY, Dataset, Plan, Segment, read_plan, settings_difference
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
    refuse_other_settings(Dataset(store, old), settings.to_settings(), encoder)
    dataset, changes = reconcile(Dataset(store, old), source, scratch, retry=retry)
    return Planned(dataset, False, changes)


def _first_plan(source: ClipsSource, store: Store, settings: LatentSettings, encoder: str) -> Dataset:
    segments: list[Segment] = []
    add_segments(store, segments, source, source.tables())
    plan = with_segments(Plan(encoder=encoder, settings=settings.to_settings(), segments=()), segments)
    if not store.put_if_absent(PLAN_KEY, plan.to_json()) and read_plan(store) != plan:
        raise ValueError(f"{store.uri()} was planned by another run meanwhile; run the same command again")
    return Dataset(store, plan)


def refuse_other_settings(old: Dataset, settings: dict[str, Any], encoder: str) -> None:
    """Refuse an output that was planned otherwise.

    Args:
        settings: dotted key -> value, as a plan has them.
        encoder: version of what encodes.
    Raises:
        ValueError: with the differences.
    """
    difference = settings_difference(old.plan.settings, settings)
    if old.plan.encoder != encoder:
        difference.append(f"versions: were {old.plan.encoder}, are {encoder}")
    if difference:
        raise ValueError(
            f"{old.store.uri()} was planned with other settings; use the old ones, or another output:\n  "
            + "\n  ".join(difference)
        )

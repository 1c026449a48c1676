"""Encodes a dataset of clips: plan the units, run those that are missing on Ray, finalize."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from data_pipeline.build.driver import UnitsRun, run_units
from data_pipeline.build.progress import Progress
from data_pipeline.build.ray_cluster import refuse_missing_gpus, signals_raise
from data_pipeline.dataset.description import DatasetFile, withdraw
from data_pipeline.dataset.finalize import described, finalize
from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.latent_records import LatentSettings
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.units import committed_units
from data_pipeline.latents.planner import Planned, plan_latents
from data_pipeline.latents.source import opened_source
from data_pipeline.store.base import Store
from data_pipeline.store.open import open_store
from trainer.config.encoding import EncodingConfig
from trainer.latents.encoder import ModelIdentity, encoder_version, identify, model_directory
from trainer.latents.worker import EncodeJob, EncodeWorker

TASK_NAME = "encode-unit"
"""The name of a unit's task in Ray; a worker's process title is `ray::encode-unit` while it encodes a unit."""


@dataclass
class EncodingResult:
    """How a run ended."""

    plan: Plan
    dataset: DatasetFile | None  # dataset.json; None while units are missing
    failed: dict[int, str] = field(default_factory=dict)  # unit -> why it was left uncommitted
    encoded: int = 0  # units this run committed
    latents: int = 0  # latents this run committed
    latents_per_s: float = 0.0


def encode(config: EncodingConfig, *, retry_quarantined: bool = False) -> EncodingResult:
    """Plan, encode what is missing, finalize.

    Args:
        retry_quarantined: plan the clips again that could not be read.
    Raises:
        ValueError: the input is wrong, or the output holds other latents; no work was started.
        OSError: a store fails.
        RuntimeError: Ray or its actors do not start.
        KeyboardInterrupt: SIGINT or SIGTERM came. What is committed stays.
    """
    store = open_store(config.output)
    refuse_missing_gpus(config.run, config.run.resources, torch.cuda.device_count())
    with signals_raise():
        job, missing = plan_encoding(config, store, retry_quarantined=retry_quarantined)
        run = run_units(
            job,
            missing,
            EncodeWorker,
            config=config.run,
            resources=config.run.resources,
            progress=progress_of(job, missing),
            name=TASK_NAME,
        )
        return finish_encoding(job, run, store)


def plan_encoding(
    config: EncodingConfig, store: Store, *, retry_quarantined: bool = False
) -> tuple[EncodeJob, list[int]]:
    """What is to be done: the job, and the units that are not committed yet.

    Args:
        store: of `config.output`.
        retry_quarantined: as for `encode`.
    Raises:
        ValueError: the input is wrong, or the output was begun with other settings.
    """
    with model_directory(config.model) as folder:
        identity = identify(folder)
    scratch = config.run.scratch or None
    with opened_source(open_store(config.shards), scratch) as source:
        settings = latent_settings(config, identity, source.description)
        planned = plan_latents(source, store, settings, encoder_version(), scratch, retry=retry_quarantined)
    dataset = planned.dataset
    committed = committed_units(store)
    missing = [unit for unit in range(dataset.plan.units) if unit not in committed]
    _say(planned, missing)
    if missing and described(dataset):
        withdraw(store)  # the description speaks of units that have been deleted
    return EncodeJob(_absolute(config), dataset.plan), missing


def _absolute(config: EncodingConfig) -> EncodingConfig:
    """The settings with places that mean the same in a worker, whose current folder is another one."""

    def place(text: str) -> str:
        return text if "://" in text else str(Path(text).absolute())

    return replace(config, model=place(config.model), shards=place(config.shards), output=place(config.output))


def latent_settings(config: EncodingConfig, model: ModelIdentity, clips: DatasetFile) -> LatentSettings:
    """What the plan records.

    Args:
        clips: dataset.json of the clips.
    Raises:
        ValueError: windows that the model does not take, or clips that are smaller than its square.
    """
    architecture, windows = model.config, config.windows
    frames = windows.frames or architecture.frames
    if not architecture.shortest <= frames <= architecture.frames:
        raise ValueError(
            f"windows.frames={frames}: this model takes {architecture.shortest} to {architecture.frames} frames"
        )
    size = architecture.image_size
    if 0 < windows.resize < size:
        raise ValueError(
            f"windows.resize={windows.resize} is smaller than the model's {size} pixels; use {size} or more, or 0"
        )
    if not windows.resize and size > clips.short_side:
        raise ValueError(
            f"the model takes {size} pixels, more than the {clips.short_side} of the clips' stored short side; set "
            f"windows.resize={size} to enlarge the frames, or build shards with a larger short side"
        )
    return LatentSettings(
        fps=clips.stored_fps,
        weights=model.weights,
        model=model.settings(),
        dtype=config.stored.dtype,
        shapes=model.shapes(frames, config.stored.logvar),
        windows=windows.plan_settings(frames, size),
        encode=config.encode.plan_settings(),
        shard_bytes=config.shard_bytes,
    )


def _say(planned: Planned, missing: list[int]) -> None:
    plan = planned.dataset.plan
    done = plan.units - len(missing)
    if changes := planned.changes.describe():
        print(f"the clips have changed: {changes}", flush=True)
    print(
        f"{'planned' if planned.fresh else 'resuming'}: {plan.rows} clips in {plan.units} units"
        + (f", {done} already committed" if done else ""),
        flush=True,
    )


def progress_of(job: EncodeJob, missing: list[int]) -> Progress:
    """The progress line of an encoding with these units still to do."""
    plan = job.plan
    rows = sum(map(plan.rows_in, missing))
    return Progress(plan.units, plan.units - len(missing), rows, job.config.run.progress_s, items_name=LATENTS.name)


def finish_encoding(job: EncodeJob, run: UnitsRun, store: Store) -> EncodingResult:
    """Finalize the dataset, unless units are missing."""
    result = EncodingResult(job.plan, None, run.failed, run.done, run.items, run.items_per_s)
    if not run.failed:
        dataset = Dataset(store, job.plan)
        result.dataset = (None if run.done else described(dataset)) or finalize(dataset, job.config.run.scratch or None)
    return result

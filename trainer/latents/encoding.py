"""Encodes a dataset of clips: plan the units, run those that are missing on Ray, finalize."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from data_pipeline.build.dataset_job import DatasetResult, begin, missing_units, run_dataset_job
from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.latent_records import LatentSettings
from data_pipeline.latents.planner import plan_latents
from data_pipeline.latents.source import opened_source
from data_pipeline.outside.naming import naming
from data_pipeline.store.base import Store
from data_pipeline.store.open import absolute_place, open_store
from trainer.config.encoding import EncodingConfig
from trainer.latents.encoder import ModelIdentity, encoder_version, identify, model_directory
from trainer.latents.worker import EncodeJob, EncodeWorker

TASK_NAME = "encode-unit"
"""The name of a unit's task in Ray; a worker's process title is `ray::encode-unit` while it encodes a unit."""


def encode(config: EncodingConfig, *, retry_quarantined: bool = False) -> DatasetResult:
    """Plan, encode what is missing, finalize.

    Args:
        retry_quarantined: plan the clips again that could not be read.
    Raises: as `run_dataset_job`.
    """
    plan = partial(plan_encoding, config, retry_quarantined=retry_quarantined)
    return run_dataset_job(config.run, config.output, plan, EncodeWorker, TASK_NAME, gpus=torch.cuda.device_count())


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
    with naming("model="), model_directory(config.model) as folder:
        identity = identify(folder)
    scratch = config.run.scratch or None
    with opened_source(open_store(config.shards), scratch) as source:
        settings = latent_settings(config, identity, source.description)
        planned = plan_latents(source, store, settings, encoder_version(), scratch, retry=retry_quarantined)
    dataset = planned.dataset
    missing = missing_units(dataset)
    if changes := planned.changes.describe():
        print(f"the clips have changed: {changes}", flush=True)
    begin(dataset, missing, fresh=planned.fresh)
    model, shards, output = map(absolute_place, (config.model, config.shards, config.output))
    return EncodeJob(replace(config, model=model, shards=shards, output=output), dataset.plan), missing


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

"""Encodes the captions of a dataset of latents: plan the units, run those that are missing on Ray, finalize."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from data_pipeline.build.dataset_job import DatasetResult, begin, missing_units, run_dataset_job
from data_pipeline.dataset.text_records import TextSettings
from data_pipeline.store.base import Store
from data_pipeline.store.open import absolute_place, open_store
from data_pipeline.texts.planner import earlier_plan, plan_texts
from data_pipeline.texts.source import distinct_captions
from trainer.config.text_encoding import TextEncodingConfig
from trainer.texts.encoder import EncoderIdentity, encoder_version, identify_encoder
from trainer.texts.worker import TextJob, TextWorker

TASK_NAME = "encode-texts"
"""The name of a unit's task in Ray; a worker's process title is `ray::encode-texts` while it encodes a unit."""


def encode_texts(config: TextEncodingConfig) -> DatasetResult:
    """Plan, encode what is missing, finalize. Raises: as `run_dataset_job`."""
    plan = partial(plan_text_encoding, config)
    return run_dataset_job(config.run, config.output, plan, TextWorker, TASK_NAME, gpus=torch.cuda.device_count())


def plan_text_encoding(config: TextEncodingConfig, store: Store) -> tuple[TextJob, list[int]]:
    """What is to be done: the job, and the units that are not committed yet.

    Args:
        store: of `config.output`.
    Raises:
        ValueError: the input is wrong, or the output was begun with other settings.
    """
    settings = text_settings(config, identify_encoder(Path(config.encoder)))
    earlier_plan(store, settings, encoder_version())  # its refusals come before all shards are read for their captions
    captions = distinct_captions(open_store(config.latents), config.run.scratch or None)
    planned = plan_texts(captions, store, settings, encoder_version())
    dataset = planned.dataset
    missing = missing_units(dataset)
    if planned.new and not planned.fresh:
        print(f"the captions have changed: {planned.new} new", flush=True)
    begin(dataset, missing, fresh=planned.fresh)
    config = replace(config, encoder=absolute_place(config.encoder), output=absolute_place(config.output))
    return TextJob(config, dataset.plan), missing


def text_settings(config: TextEncodingConfig, encoder: EncoderIdentity) -> TextSettings:
    """What the plan records.

    Raises:
        ValueError: a number of tokens that the encoder does not take.
    """
    limit, wanted = encoder.limit, config.text.max_tokens
    if not limit and not wanted:
        raise ValueError("text.max_tokens=0: this encoder has no limit of its own; set a number, such as 128")
    if limit and wanted > limit:
        raise ValueError(f"text.max_tokens={wanted}: this encoder takes at most {limit} tokens")
    most = wanted or limit
    if most <= encoder.empty_tokens:
        raise ValueError(
            f"text.max_tokens={most} leaves no room for a caption beside the {encoder.empty_tokens} special tokens"
        )
    return TextSettings(
        encoder=encoder.digest,
        model=encoder.model,
        width=encoder.width,
        max_tokens=most,
        empty_tokens=encoder.empty_tokens,
        dtype=config.stored.dtype,
        encode=config.encode.plan_settings(),
        unit_captions=config.unit_captions,
        shard_bytes=config.shard_bytes,
    )

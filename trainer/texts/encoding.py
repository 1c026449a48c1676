"""Encodes the captions of a dataset of latents: plan the units, run those that are missing on Ray, finalize."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from data_pipeline.build.driver import UnitsRun, run_units
from data_pipeline.build.progress import Progress
from data_pipeline.build.ray_cluster import refuse_missing_gpus, signals_raise
from data_pipeline.dataset.description import DatasetFile, withdraw
from data_pipeline.dataset.finalize import described, finalize
from data_pipeline.dataset.kind import TEXTS
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.text_records import TextSettings
from data_pipeline.dataset.units import committed_units
from data_pipeline.store.base import Store
from data_pipeline.store.open import open_store
from data_pipeline.texts.planner import Planned, plan_texts
from data_pipeline.texts.source import distinct_captions
from trainer.config.text_encoding import TextEncodingConfig
from trainer.texts.encoder import EncoderIdentity, encoder_version, identify_encoder
from trainer.texts.worker import TextJob, TextWorker

TASK_NAME = "encode-texts"
"""The name of a unit's task in Ray; a worker's process title is `ray::encode-texts` while it encodes a unit."""


@dataclass
class TextsResult:
    """How a run ended."""

    plan: Plan
    dataset: DatasetFile | None  # dataset.json; None while units are missing
    failed: dict[int, str] = field(default_factory=dict)  # unit -> why it was left uncommitted
    encoded: int = 0  # units this run committed
    texts_per_s: float = 0.0


def encode_texts(config: TextEncodingConfig) -> TextsResult:
    """Plan, encode what is missing, finalize.

    Raises:
        ValueError: the input is wrong, or the output holds other texts; no work was started.
        OSError: a store fails.
        RuntimeError: Ray or its actors do not start.
        KeyboardInterrupt: SIGINT or SIGTERM came. What is committed stays.
    """
    store = open_store(config.output)
    refuse_missing_gpus(config.run, config.run.resources, torch.cuda.device_count())
    with signals_raise():
        job, missing = plan_text_encoding(config, store)
        plan, rows = job.plan, sum(map(job.plan.rows_in, missing))
        run = run_units(
            job,
            missing,
            TextWorker,
            config=config.run,
            resources=config.run.resources,
            progress=Progress(
                plan.units, plan.units - len(missing), rows, config.run.progress_s, items_name=TEXTS.name
            ),
            name=TASK_NAME,
        )
        return finish_text_encoding(job, run, store)


def plan_text_encoding(config: TextEncodingConfig, store: Store) -> tuple[TextJob, list[int]]:
    """What is to be done: the job, and the units that are not committed yet.

    Args:
        store: of `config.output`.
    Raises:
        ValueError: the input is wrong, or the output was begun with other settings.
    """
    settings = text_settings(config, identify_encoder(Path(config.encoder)))
    captions = distinct_captions(open_store(config.latents), config.run.scratch or None)
    planned = plan_texts(captions, store, settings, encoder_version())
    dataset = planned.dataset
    committed = committed_units(store)
    missing = [unit for unit in range(dataset.plan.units) if unit not in committed]
    _say(planned, missing)
    if missing and described(dataset):
        withdraw(store)  # the description speaks of units that have been deleted
    config = replace(config, encoder=str(Path(config.encoder).absolute()), output=_absolute(config.output))
    return TextJob(config, dataset.plan), missing


def _absolute(place: str) -> str:
    """A place that means the same in a worker, whose current folder is another one."""
    return place if "://" in place else str(Path(place).absolute())


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


def _say(planned: Planned, missing: list[int]) -> None:
    plan = planned.dataset.plan
    done = plan.units - len(missing)
    if planned.new and not planned.fresh:
        print(f"the captions have changed: {planned.new} new", flush=True)
    print(
        f"{'planned' if planned.fresh else 'resuming'}: {plan.rows} {TEXTS.rows} in {plan.units} units"
        + (f", {done} already committed" if done else ""),
        flush=True,
    )


def finish_text_encoding(job: TextJob, run: UnitsRun, store: Store) -> TextsResult:
    """Finalize the dataset, unless units are missing."""
    result = TextsResult(job.plan, None, run.failed, run.done, run.items_per_s)
    if not run.failed:
        dataset = Dataset(store, job.plan)
        result.dataset = (None if run.done else described(dataset)) or finalize(dataset, job.config.run.scratch or None)
    return result

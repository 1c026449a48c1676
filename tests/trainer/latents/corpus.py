"""A small corpus to encode: clips of real videos as the builder makes them, a tiny model, and a run without Ray."""

from __future__ import annotations

import copy
import csv
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.dataset_job import DatasetResult, finish
from data_pipeline.build.driver import UnitsRun
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import ENCODER_VERSION, CutResult, cut_clips
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.takedown import taken_down
from data_pipeline.dataset.units import committed_units
from data_pipeline.store.base import Store
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from model.config import DynamicsConfig, StructureConfig, VidTwinConfig
from model.vidtwin import VidTwin
from tests.data_pipeline.dataset.tiny_dataset import real_video
from trainer.config.encoding import EncodingConfig
from trainer.config.loader import load_config
from trainer.latents.encoding import plan_encoding
from trainer.latents.worker import EncodeWorker

CLIP = ClipConfig(short_side=72, min_seconds=1.0, max_seconds=2.5, min_short_side=72)
ROWS = (("bikes", "bikes.mp4", "train"), ("again", "bikes.mp4", "test"), ("phone", "carphone_pristine.mp4", "val"))
MORE = (("bunny", "bigbuckbunny.mp4", "train"), ("phone2", "carphone_pristine.mp4", "train"))
Row = tuple[str, str, str]  # id, video, split


_CUT: dict[tuple[str, float | None, float | None, str], CutResult] = {}


def cut_once(
    path: str | Path, *, start: float | None = None, end: float | None = None, config: ClipConfig
) -> CutResult:
    """What `cut_clips` makes of a video that nobody changes; of the same words it is asked once in a process."""
    key = str(path), start, end, repr(config)
    if key not in _CUT:
        _CUT[key] = cut_clips(path, start=start, end=end, config=config)
    return copy.deepcopy(_CUT[key])


def build_clips(
    folder: Path, rows: Sequence[Row] = ROWS, texts: Mapping[str, str] | None = None, clip: ClipConfig = CLIP
) -> LocalStore:
    """Build shards of real videos below `folder`, one unit for each row; further rows are appended as new units.

    Args:
        texts: id -> caption and label, where they are not made of the id.
        clip: how they are cut.
    """
    name, texts = f"videos-{len(rows)}-{rows[0][0]}", texts or {}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "video", "caption", "label", "split"])
        for identity, video, split in rows:
            table.writerow(
                [
                    identity,
                    real_video(video),
                    texts.get(identity, f"a caption of {identity}"),
                    texts.get(identity, identity[:2]),
                    split,
                ]
            )
    store = LocalStore(folder / "shards")
    config = ShardsConfig(source=str(folder / f"{name}.csv"), output=str(store.root), clip=clip, unit_rows=1)
    planned = make_plan(config, ENCODER_VERSION, store, append=True)
    worker = Worker(BuildJob(config, planned.plan, planned.base, taken_down(store)), partial(cut_once, config=clip))
    for unit in sorted(set(range(planned.plan.units)) - committed_units(store)):
        worker.run(unit)
    finalize(Dataset(store, planned.plan))
    return store


def save_model(folder: Path, seed: int = 0) -> Path:
    """A model directory with random weights; it takes 2 to 4 frames of 32 x 32 pixels."""
    torch.manual_seed(seed)
    structure = StructureConfig(
        queries=4, query_width=16, query_heads=2, query_layers=2, query_hidden=16, conv_width=8, channels=3
    )
    config = VidTwinConfig(
        frames=4,
        min_frames=2,
        image_size=32,
        patch_size=8,
        width=32,
        depth=1,
        heads=2,
        structure=structure,
        dynamics=DynamicsConfig(channels=2),
    )
    VidTwin(config).eval().save_pretrained(folder)
    return folder


def config_of(model: Path | str, shards: Path | str, output: Path | str, *words: str) -> EncodingConfig:
    """Settings of an encoding that a user would give as words."""
    return load_config(EncodingConfig, [], [f"model={model}", f"shards={shards}", f"output={output}", *words])


def encode_here(config: EncodingConfig, *, retry: bool = False) -> DatasetResult:
    """What `encode` does, without Ray: the units are encoded one after another in this process.

    Args:
        retry: whether the clips are tried again that could not be read.
    """
    store = open_store(config.output)
    job, missing = plan_encoding(config, store, retry_quarantined=retry)
    worker = EncodeWorker(job)
    items = sum(worker.run(unit).items for unit in missing)
    return finish(job, UnitsRun(done=len(missing), items=items), store)


def contents(store: Store) -> dict[str, str]:
    """SHA-256 of every object."""
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in store.keys()}

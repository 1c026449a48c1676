"""A tiny model, videos whose frames say their own number, checkpoints of a run, and a dataset of real videos."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import ENCODER_VERSION, cut_clips
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.plan import Dataset
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.dataset.tiny_dataset import make_clips, real_video, split_into_shards, write_dataset
from tests.trainer.checkpoint.chained import chained
from tests.trainer.evaluation.conftest import grey_ramp, tiny_model, tiny_model_directory

__all__ = ["chained", "grey_ramp", "tiny_model", "tiny_model_directory"]


@pytest.fixture(scope="session")
def real_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build makes of two real videos, the first of which has two rows; not to be changed.

    The ids of the rows are `bikes`, `again` and `v\u00e9lo`. The clips of the first two are the same.
    """
    folder = tmp_path_factory.mktemp("real")
    rows = ("bikes", "bikes.mp4"), ("again", "bikes.mp4"), ("v\u00e9lo", "carphone_pristine.mp4")
    lines = [f"{name},{real_video(video)},a caption of {name},val" for name, video in rows]
    (folder / "videos.csv").write_text("\n".join(["id,video,caption,split", *lines, ""]), "utf-8")
    clip = ClipConfig(short_side=72, min_seconds=1.0, max_seconds=2.5, min_short_side=72)
    store = LocalStore(folder / "shards")
    config = ShardsConfig(source=str(folder / "videos.csv"), output=str(store.root), clip=clip, unit_rows=1)
    planned = make_plan(config, ENCODER_VERSION, store)
    worker = Worker(BuildJob(config, planned.plan, planned.base), partial(cut_clips, config=clip))
    for unit in range(planned.plan.units):
        worker.run(unit)
    finalize(Dataset(store, planned.plan))
    return store.root


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Four clips to train on and three held-out ones, with two windows of 4 frames each."""
    clips = make_clips(4, frames=(8,)) + make_clips(3, frames=(9,), split="val")
    return write_dataset(tmp_path / "shards", split_into_shards(clips, [4]))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two real videos in a folder."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("bikes.mp4", "carphone_pristine.mp4"):
        shutil.copy(real_video(name), folder)
    return folder

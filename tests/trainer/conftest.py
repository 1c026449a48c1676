"""A process group of one, for what needs ranks but no DeepSpeed, and a run of the toy method (see toy.py)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.cases import tiny_config
from tests.trainer.checkpoint.chained import chained
from tests.trainer.toy import STEPS, losses, toy
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.faults.stop_request import SIGNALS
from trainer.loop import Stopped
from trainer.run import run

__all__ = ["alone", "chained"]


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    """The only rank there is."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, 0, torch.device("cpu"), dist.new_group(backend="gloo"))
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven clips; not to be changed."""
    return write_dataset(tmp_path_factory.mktemp("data"), split_into_shards(make_clips(11, frames=(9, 12)), [4]))


@pytest.fixture
def environment() -> Iterator[None]:
    """A run leaves the variables of its process group behind, and ignores signals because its process is to end."""
    kept, handlers = dict(os.environ), {number: signal.getsignal(number) for number in SIGNALS}
    os.environ["DS_ACCELERATOR"] = "cpu"
    yield
    os.environ.clear()
    os.environ.update(kept)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def config(environment: None, toy_data: Path, tmp_path: Path) -> TrainConfig:
    """A run of the toy method, of `toy.STEPS` steps."""
    words = [f"data.shards={toy_data}", f"steps={STEPS}", "data.workers=0", "data.shuffle_window=4"]
    logs = ["telemetry.log_every=1", "telemetry.samples_every=0"]
    return tiny_config(str(tmp_path / "run"), *words, "checkpoint.every=4", *logs)


@pytest.fixture
def undisturbed(config: TrainConfig, tmp_path: Path) -> list[tuple[int, float]]:
    """Losses of that run from start to end."""
    other = replace(config, output=str(tmp_path / "undisturbed"))
    assert run(other, toy()) is Stopped.FINISHED
    return losses(other)

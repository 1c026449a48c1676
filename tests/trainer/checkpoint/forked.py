"""Trainings of VidTwin and forks of them, one after the other in one process tree (test_fork_networks.py).

python -m tests.trainer.checkpoint.forked DIRECTORY
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.cases import tiny_config
from tests.trainer.checkpoint.resharded import part
from tests.trainer.worlds import imports, in_world
from trainer.config.train import TrainConfig

STEPS, FORKED = 8, 3


def parent(directory: Path) -> TrainConfig:
    """A training with the discriminator from step 2 on, posterior noise, LeCam and a moving average, on two ranks."""
    data = directory / "data"
    words = [f"data.shards={data}", f"steps={STEPS}", "data.workers=0", "data.shuffle_window=4", "ema.decay=0.75"]
    words += ["gan.start=1", "gan.warmup=1", "gan.ramp=2", "gan.lecam_weight=0.1", "discriminator.norm=group"]
    words += ["zero.stage=2", "checkpoint.every=1", "checkpoint.keep=9"]
    logs = ["telemetry.log_every=1", "telemetry.samples_every=0", "telemetry.tensorboard=false"]
    return tiny_config(str(directory / "parent"), *words, *logs)


def variant(config: TrainConfig, name: str, **gan: Any) -> TrainConfig:
    """The same training in a folder of its own, with other settings of `gan`."""
    return replace(config, output=str(Path(config.output).with_name(name)), gan=replace(config.gan, **gan))


def fork_of(config: TrainConfig, name: str, **gan: Any) -> TrainConfig:
    """A fork after step `FORKED`."""
    return replace(variant(config, name, **gan), fork_from=f"{config.output}@{FORKED}")


def main(directory: Path) -> None:
    """Each run in a folder of its name."""
    write_dataset(directory / "data", split_into_shards(make_clips(11, frames=(9, 12)), [4]))
    both, plain = parent(directory), variant(parent(directory), "plain", weight=0.0)
    alone = fork_of(both, "on one rank")
    alone.zero = replace(alone.zero, stage=0)
    runs = [(2, both), (2, fork_of(both, "fork")), (1, alone), (2, fork_of(both, "off", weight=0.0)), (2, plain)]
    runs.append((2, fork_of(plain, "on", weight=0.5, start=4, warmup=2)))
    runs.append((2, variant(both, "late", start=7, warmup=0, ramp=0)))
    for ranks, config in runs:
        in_world(ranks, partial(part, config))


if __name__ == "__main__":
    imports()
    main(Path(sys.argv[1]))

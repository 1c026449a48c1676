"""Trainings whose optimizers have two groups of weights, or one, saved and loaded with the other and at other stages.

python -m tests.trainer.checkpoint.grouped DIRECTORY
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.trainer.cases import global_batches
from tests.trainer.checkpoint.resharded import GLOBAL_BATCH, config_of, everything, matrix_recipe
from tests.trainer.worlds import imports, in_world

SAVED = [
    *((stage, "fp32", "matrices") for stage in (0, 1, 2, 3)),
    *((stage, "bf16", "matrices") for stage in (0, 1)),
    *((stage, "fp32", "all") for stage in (0, 1)),
]
"""ZeRO stage, precision and `optim.decay` of what two ranks save."""

SAME_STAGE = [(3, "fp32", "matrices", "all"), (0, "fp32", "all", "matrices"), (1, "fp32", "all", "matrices")]
SAME_STAGE += [(1, "fp32", "matrices", "matrices"), (0, "bf16", "matrices", "matrices")]
"""What two ranks load at the stage that wrote it, and with which `optim.decay`."""

DECAY = 0.125


def words(precision: str, decay: str) -> list[str]:
    settings = [f"optim.{network}.weight_decay={DECAY}" for network in ("generator", "discriminator")]
    return [f"precision={precision}", f"optim.decay={decay}", *settings]


def save_all(directory: Path) -> dict[str, Any]:
    """One rank: train three steps with every setting, and save; then load what is loaded at its own stage."""
    from tests.trainer.two_ranks import steps
    from trainer import distributed
    from trainer.autoencoder import Autoencoder

    ranks = distributed.start(2)
    results = {}
    for stage, precision, decay in SAVED:
        name = f"{stage}-{precision}-{decay}"
        method = Autoencoder(config_of(directory, stage, *words(precision, decay), recipe=matrix_recipe()), ranks)
        steps(method, ranks, global_batches(size=GLOBAL_BATCH)[:3])
        if ranks.is_main:
            (directory / name).mkdir(parents=True)
        dist.barrier()
        method.save(directory / name)
        results[name] = everything(method) | {"decays": decays(method)}
    for stage, precision, before, now in SAME_STAGE:
        name = f"{stage}-{precision}-{before}"
        results[f"{name} to {name} {now}"] = loaded(directory / name, stage, words(precision, now), ranks)
    distributed.stop()
    return results


def load_alone(directory: Path) -> dict[str, Any]:
    """A single rank loads all of it, each at the next stage, and every second one with the other groups."""
    from trainer import distributed

    ranks = distributed.start(2)
    results = {}
    for number, (stage, precision, decay) in enumerate(SAVED):
        name, other = f"{stage}-{precision}-{decay}", "all" if decay == "matrices" else "matrices"
        now = other if number % 2 else decay
        found = loaded(directory / name, (stage + 1) % 4, words(precision, now), ranks)
        results[f"{name} to {(stage + 1) % 4} {now}"] = found
    distributed.stop()
    return results


def loaded(saved: Path, stage: int, settings: list[str], ranks: Any) -> dict[str, Any]:
    from trainer.autoencoder import Autoencoder

    method = Autoencoder(config_of(saved, stage, *settings, recipe=matrix_recipe()), ranks)
    method.load(saved)
    return everything(method) | {"decays": decays(method)}


def decays(method: Any) -> list[list[float]]:
    """Weight decay of each group of both optimizers."""
    return [
        [g["weight_decay"] for g in e.engine.optimizer.param_groups] for e in (method.generator, method.discriminator)
    ]


def main() -> None:
    directory = Path(sys.argv[1])
    imports()
    results = in_world(2, partial(save_all, directory))
    torch.save(results | in_world(1, partial(load_alone, directory)), directory / "results.pt")


if __name__ == "__main__":
    main()

"""What two_ranks.py runs with dropout, and with a loss that is infinite while every gradient is finite."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.read.loader import Position
from tests.trainer.cases import as_batch, global_batches, tiny_config
from tests.trainer.numbers import LOADER
from trainer.autoencoder import Autoencoder
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.distributed import Ranks

SAVED_AFTER = 3


def dropped(directory: Path, ranks: Ranks) -> dict[str, Any]:
    """Six steps with dropout; saved by the loop's checkpoints in the middle and gone on with, with pictures between.

    In the first step the ranks have the same clips and no posterior noise, so that only dropout can tell them apart.
    """
    from tests.trainer.two_ranks import steps

    words = ["model.structure.dropout=0.1", "loss.sample_posterior=false", "gan.weight=0"]
    config = tiny_config(str(directory / "dropout"), *words)
    method = Autoencoder(config, ranks)
    batches = global_batches()
    same = as_batch(batches[0].chunk(ranks.world_size)[0])
    with torch.no_grad():
        module = method.generator.module
        calm = float(module.eval().vidtwin(same.video).kl)  # type: ignore[operator, union-attr]
        module.train()
    divergence = float(method.step(same, 0)["kl_loss"])
    rows = steps(method, ranks, batches[1:SAVED_AFTER], first=1)
    checkpoints = Checkpoints(config, ranks)
    saved = checkpoints.save(SAVED_AFTER, Position(0, 0), method, LOADER)
    rows += steps(method, ranks, batches[SAVED_AFTER:], first=SAVED_AFTER)

    resumed = Autoencoder(config, ranks)
    checkpoints.load(saved, resumed)
    again = steps(resumed, ranks, batches[SAVED_AFTER:-1], first=SAVED_AFTER)
    resumed.pictures(same, 2)
    again += steps(resumed, ranks, batches[-1:], first=len(batches) - 1)
    return {"calm": ranks.gather(calm), "kl": ranks.gather(divergence), "rows": rows, "again": again}


def endless(directory: Path, ranks: Ranks) -> dict[str, Any]:
    """Two steps in which the last rank's discriminator says -inf, whose gradient is finite; then one in which it works.

    In the first the discriminator learns alone, in the second the generator hears it. Without LeCam, which would square
    the infinity.
    """
    from tests.trainer.two_ranks import steps

    words = ["gan.start=0", "gan.warmup=1", "gan.ramp=0", "gan.lecam_weight=0"]
    words += ["optim.generator.warmup=0", "optim.discriminator.warmup=0"]
    method = Autoencoder(tiny_config(str(directory), *words), ranks)
    assert method.discriminator is not None
    discriminator = method.discriminator.module
    judge: Any = discriminator.judge
    rows, moved = [], []
    for step, video in enumerate(global_batches()[:3]):
        broken = step < 2 and not ranks.is_main
        discriminator.judge = (lambda video: judge(video) - math.inf) if broken else judge  # type: ignore[assignment]
        before = _learnt(method)
        rows += steps(method, ranks, [video], first=step)
        after = _learnt(method)
        moved.append([name for name in before if not torch.equal(before[name], after[name])])
    return {"rows": rows, "moved": moved}


def _learnt(method: Autoencoder) -> dict[str, Tensor]:
    """What learns in each network, laid end to end."""
    found = {}
    for engine in (method.generator, method.discriminator):
        assert engine is not None
        state = engine.full_state()
        found[engine.name] = torch.cat([state[name].flatten() for name, _ in engine.module.named_parameters()])
    return found

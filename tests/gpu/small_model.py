"""A tiny training whose numbers do not depend on the machine: weights by formula, no noise, statistics of no batch.

The GPU draws other random numbers than the CPU, so that the posteriors' means are trained on. The discriminator has
group norm, so that the objective does not depend on how a batch is divided.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.discriminator import build_discriminator
from model.official import DISCRIMINATOR_FILE
from model.vidtwin import VidTwin
from model.weights import save_tensors
from tests.trainer.cases import as_batch, global_batches, tiny_config
from trainer.autoencoder import Autoencoder
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks

STEPS = 4
MAX_SKIPPED = 40
TERMS = ("total_loss", "kl_loss", "l1", "disc_loss", "adversarial_weight", "grad_norm_generator")
WORDS = (
    *("loss.sample_posterior=false", "tf32=false", "discriminator.norm=group", "gan.lecam_weight=0"),
    *("gan.start=0", "gan.warmup=0", "gan.ramp=0"),
)


def small_config(folder: Path, *words: str) -> TrainConfig:
    """The training's configuration; it starts from the weights in `folder/init`, which are made where missing."""
    config = tiny_config(str(folder / "run"), *WORDS, *words)
    initial = folder / "init"
    if not initial.is_dir():
        write_initial(config, initial)
    config.init_from = str(initial)
    return config


def write_initial(config: TrainConfig, directory: Path) -> None:
    """Write initial weights that are the same on every machine."""
    vidtwin, discriminator = VidTwin(config.model), build_discriminator(config.discriminator)
    fill(vidtwin)
    fill(discriminator)
    vidtwin.save_pretrained(directory)
    save_tensors(discriminator.state_dict(), directory / DISCRIMINATOR_FILE)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Give each weight uniform numbers, drawn from its name, of a size that keeps activations near one."""
    for name, weight in module.named_parameters():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        uniform = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).uniform(-1, 1, weight.shape))
        if weight.dim() > 1:
            weight.copy_(uniform * math.sqrt(3.0 / weight[0].numel()))
        elif name.endswith("weight"):
            weight.copy_(1.0 + 0.1 * uniform)  # of a norm
        else:
            weight.copy_(0.1 * uniform)


def train(method: Autoencoder, ranks: Ranks, first: int = 0, steps: int = STEPS) -> list[dict[str, float]]:
    """Terms of each step, averaged over the ranks.

    A step that fp16 skips, because its loss scale is still too large, is taken again: it has changed no weight.
    """
    rows = []
    for step, video in list(enumerate(global_batches(STEPS, method.config.data.global_batch)))[first : first + steps]:
        share: Tensor = video.chunk(ranks.world_size)[ranks.rank]
        for _ in range(MAX_SKIPPED):
            terms = method.step(as_batch(share), step)
            if not float(terms["skipped"]):
                break
        mine = {name: float(terms[name]) for name in TERMS}
        everyone = ranks.gather(mine)
        rows.append({name: sum(row[name] for row in everyone) / len(everyone) for name in TERMS})
    return rows


def key(term: str, step: int) -> str:
    """Name of a term in the file of reference numbers."""
    return f"step {step} {term}"

"""A model directory that trainings in 16 bits start from and export again before their first step."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import torch

from model.config import WEIGHTS_FILE
from model.official import LOGVAR_FILE
from model.vidtwin import VidTwin
from model.weights import save_tensors
from tests.trainer import half
from tests.trainer.cases import as_batch, global_batches, tiny_config
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks

OFFLOADS = {"nothing": (0, 1, 2, 3), "optimizer": (1, 2, 3), "parameters": (3,)}
"""What lies in host memory -> the ZeRO stages that can do that."""

LOGVAR = math.pi / 10
"""No number of 16 bits."""

CASES = [
    (stage, precision, what)
    for what, stages in OFFLOADS.items()
    for stage, precision in product(stages, ("bf16", "fp16"))
]


def write_start(directory: Path) -> None:
    """A model directory whose values use all bits of fp32."""
    torch.manual_seed(7)
    model = VidTwin(tiny_config(str(directory)).model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) / 7)
    model.save_pretrained(directory)
    save_tensors({"logvar": torch.tensor([LOGVAR])}, directory / LOGVAR_FILE)


@half.allowed()
def exported(directory: Path, ranks: Ranks, stage: int, precision: str, what: str) -> dict[str, Any]:
    """What is found of a case, on the main rank; nothing on the others.

    Returns:
        `differing`: which files of the export at step 0 and of its moving average differ from those of the start;
        `logvar`: the one that the first step computes with.
    """
    start = directory / "exact"
    if not start.is_dir():
        ranks.barrier()
        if ranks.is_main:
            write_start(start)
        ranks.barrier()
    words = [f"zero.stage={stage}", f"precision={precision}", f"init_from={start}", "gan.weight=0", "ema.decay=0.5"]
    words += [f"zero.offload_optimizer={what != 'nothing'}", f"zero.offload_parameters={what == 'parameters'}"]
    folder = directory / f"exact {stage} {precision} {what}"
    method = Autoencoder(tiny_config(str(directory), *words, "zero.persistence_threshold=300"), ranks)
    method.export(folder)
    terms = method.step(as_batch(global_batches()[0].chunk(ranks.world_size)[ranks.rank]), 0)
    if not ranks.is_main:
        return {}
    differing = [
        f"{written.name}/{file}"
        for written in (folder, folder.with_name(f"{folder.name}_ema"))
        for file in (WEIGHTS_FILE, LOGVAR_FILE)
        if (written / file).read_bytes() != (start / file).read_bytes()
    ]
    return {"differing": differing, "logvar": float(terms["logvar"])}

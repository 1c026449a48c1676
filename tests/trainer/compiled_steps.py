"""Small trainings with `torch.compile` and without it, on one rank under the real engines.

    python -m tests.trainer.compiled_steps OUTPUT.json CASE...

A case is a word such as `stage=3,mode=selective,precision=bf16,frames=mixed,compile=all`. `aot_eager` stands in for
Inductor: it traces, joins and divides the graphs as Inductor has them, and computes them by the operators that eager
uses, so that the numbers must be the same digit for digit.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from model.lpips import LPIPS
from tests.trainer.cases import as_batch, global_batches, mixed_batches, tiny_config
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.config.objective import LossConfig
from trainer.distributed import Ranks
from trainer.engine import compiled
from trainer.perceptual import untrained_perceptual


def random_lpips(loss: LossConfig, device: torch.device) -> LPIPS | None:
    torch.manual_seed(0)
    return untrained_perceptual(loss, device)


def trained(ranks: Ranks, case: dict[str, str], compile_what: str) -> dict[str, Any]:
    """The terms of three steps, and digests of all weights after them."""
    mixed = case.get("frames") == "mixed"
    words = [f"zero.stage={case['stage']}", f"precision={case.get('precision', 'fp32')}", f"compile={compile_what}"]
    words += [f"activation_checkpointing.mode={case.get('mode', 'none')}", "gan.start=0", "gan.warmup=0", "gan.ramp=0"]
    words += ["model.depth=2"]  # the first block of a half is a graph of its own
    words += ["model.min_frames=1"] if mixed else []
    words += ["loss.perceptual=lpips", "loss.lpips_weights=unused"] if case.get("compile") == "all" else []
    torch._dynamo.reset()
    counters.clear()
    method = Autoencoder(tiny_config("unused", *words), ranks, make_perceptual=random_lpips)
    rows = []
    for step, video in enumerate((mixed_batches() if mixed else global_batches())[:3]):
        terms = method.step(as_batch(video), step)
        rows.append({name: value.item() for name, value in terms.items()})
    assert method.discriminator is not None
    state = method.generator.full_state() | method.discriminator.full_state()
    return {
        "rows": rows,
        "weights": {name: value.double().abs().sum().item() for name, value in state.items()},
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": dict(counters["graph_break"]),
    }


def main() -> None:
    compiled.BACKEND = "aot_eager"
    ranks = distributed.start(2)
    results = {}
    for word in sys.argv[2:]:
        case = dict(part.split("=") for part in word.split(","))
        chosen = case.get("compile", "blocks")
        results[word] = {"eager": trained(ranks, case, "none"), "compiled": trained(ranks, case, chosen)}
    Path(sys.argv[1]).write_text(json.dumps(results))
    distributed.stop()


if __name__ == "__main__":
    main()

"""How long training stands still for a save: through memory, and waiting for the disk; in turns, in one process.

    python -m tests.benchmarks.saving

One rank, one thread, fp32, the networks of `checkpoint.py`. Steps go on while the disk is written, and their seconds
are measured too. On a GPU the copy to memory includes the way over the bus, which nothing here measures.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.checkpoint import WORDS, Run
from tests.trainer.cases import tiny_config
from trainer import distributed

ROUNDS = 7


def run(rounds: int = ROUNDS) -> dict[str, Any]:
    """Medians of the seconds that a save stops training, and of steps beside the copy to the disk."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory() as name:
        ranks = distributed.start(15)
        torch.set_num_threads(1)
        measured = Run(tiny_config(str(Path(name) / "run"), *WORDS), ranks)
        measured.step()
        through_memory, waiting, complete, beside, quiet = [], [], [], [], []
        size = 0.0
        for _ in range(rounds):
            metrics = measured.begin_save()
            through_memory.append(metrics["save_seconds"])
            while "save_complete_seconds" not in metrics:
                beside.append(measured.step())
                measured.checkpoints.poll()
                metrics = measured.checkpoints.take_metrics()
            complete.append(metrics["save_complete_seconds"])
            quiet += [measured.step() for _ in range(3)]
            metrics = measured.save()
            waiting.append(metrics["save_seconds"])
            size = metrics["save_bytes"]
        distributed.stop()
    stops, whole = statistics.median(through_memory), statistics.median(waiting)
    return {
        "name": "a save stops training",
        "unit": "s",
        "value": stops,
        "limit": whole,
        "limit_is": "the same save waiting for the disk, in turns",
        "ratio": stops / whole,
        "target": 0.5,
        "save_bytes": size,
        "complete_seconds": statistics.median(complete),
        "step_seconds": {"beside the copy": statistics.median(beside), "without": statistics.median(quiet)},
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))

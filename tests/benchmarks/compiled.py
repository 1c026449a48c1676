"""`compile=blocks` against eager: the step of `step.py` with blocks that Inductor has compiled, and without, in turns.

    python -m tests.benchmarks --only compiled

Both steps are taken in each round, so that they see the same machine; the ratio is the median over the rounds, above 1
where compiled blocks are faster. On a busy machine read `ratio_cpu_seconds`.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from tests.benchmarks.step import CONFIG, THREADS, TrainingStep, seconds
from trainer.engine.compiled import compile_blocks

ROUNDS = 4


def run(rounds: int = ROUNDS, threads: int = THREADS) -> dict[str, Any]:
    """One line of `make bench`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        eager, compiled = TrainingStep(CONFIG), TrainingStep(CONFIG)
        compile_blocks(compiled.vidtwin)
        eager()
        begin = time.perf_counter()
        compiled()
        first = time.perf_counter() - begin
        measured = [(seconds(eager), seconds(compiled)) for _ in range(rounds)]
    finally:
        torch.set_num_threads(before)
    return {
        "name": "(e) compiled blocks",
        "unit": "clips/s",
        "value": 1 / median(there[0] for _, there in measured),
        "limit": 1 / median(here[0] for here, _ in measured),
        "limit_is": "the same step, eager",
        "ratio": median(here[0] / there[0] for here, there in measured),
        "target": 1.0,
        "ratio_cpu_seconds": median(here[1] / there[1] for here, there in measured),
        "seconds_each": [(round(here[0], 2), round(there[0], 2)) for here, there in measured],
        "first_step_seconds": round(first, 1),
    }

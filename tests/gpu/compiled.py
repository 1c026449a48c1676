"""`compile=blocks` and `compile=all` against eager, under the real engine at ZeRO 1; then cuDNN's benchmark."""

from __future__ import annotations

import gc
import time

import torch

from tests.gpu.findings import Context, held, measured, relative
from tests.gpu.timed_step import base_config, clips_per_second, timed_method
from trainer import distributed
from trainer.engine import compiled
from trainer.estimate.stopwatch import Steps

CLIPS = 6


def run(context: Context) -> None:
    if not context.on_gpu:
        compiled.BACKEND = "aot_eager"  # on the CPU, inductor would take minutes
    ranks = distributed.start(5)
    try:
        eager = 0.0
        for what in ("none", "blocks", "all"):
            begin = time.perf_counter()
            config = base_config(context.on_gpu, CLIPS if context.on_gpu else 2, f"compile={what}")
            method = timed_method(config, ranks)
            loss = loss_of(method)
            measured(f"compile={what}: built and warm", time.perf_counter() - begin, "s")
            if what == "none":
                eager = loss
            else:
                held(f"compile={what}: total_loss", relative(loss, eager), 2e-2, "eager")
            report(context, f"compile={what}", method)
            if what == "all" and context.on_gpu:
                torch.backends.cudnn.benchmark = True
                loss_of(method)  # cuDNN tries its kernels in this step
                report(context, "compile=all and cuDNN's benchmark", method)
            del method
            gc.collect()  # engines refer to themselves
    finally:
        distributed.stop()


def loss_of(method: Steps) -> float:
    """Loss of one step; weights and noise are always the same, because nothing is learnt."""
    return float(method.step(method.batch, method.adversarial_step)["total_loss"])


def report(context: Context, name: str, method: Steps) -> None:
    """Speed, and on a GPU the most memory that is in use in steps like these."""
    if context.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    measured(f"{name}: speed", clips_per_second(method, seconds=3.0 if context.on_gpu else 0.1), "clips/s")
    if context.on_gpu:
        measured(f"{name}: most memory", torch.cuda.max_memory_allocated() / 1e9, "GB")

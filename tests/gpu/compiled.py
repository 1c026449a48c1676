"""`torch.compile` of the blocks and of LPIPS against eager, under the real engine at ZeRO 1."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from tests.gpu.findings import Context, held, measured, relative
from tests.gpu.timed_step import base_config, clips_per_second, timed_method
from trainer import distributed
from trainer.estimate.stopwatch import Steps

CLIPS = 6


def run(context: Context) -> None:
    ranks = distributed.start(5)
    try:
        method = timed_method(base_config(context.on_gpu, CLIPS if context.on_gpu else 2), ranks)
        stretch = 3.0 if context.on_gpu else 0.1
        eager = loss_of(method)
        measured("eager: speed", clips_per_second(method, seconds=stretch), "clips/s")
        changes: dict[str, Callable[[], None]] = {
            "blocks compiled": partial(compile_blocks, context, method),
            "and LPIPS compiled": partial(compile_lpips, context, method),
        }
        if context.on_gpu:
            changes["and cuDNN's benchmark"] = switch_benchmark_on
        for name, change in changes.items():
            change()
            begin = time.perf_counter()
            loss = loss_of(method)
            measured(f"{name}: first step", time.perf_counter() - begin, "s")
            held(f"{name}: total_loss", relative(loss, eager), 2e-2, "eager")
            measured(f"{name}: speed", clips_per_second(method, seconds=stretch), "clips/s")
        if context.on_gpu:
            measured("compiled: most memory", torch.cuda.max_memory_allocated() / 1e9, "GB")
    finally:
        distributed.stop()


def loss_of(method: Steps) -> float:
    """Loss of one step; weights and noise are always the same, because nothing is learnt."""
    return float(method.step(method.batch, method.adversarial_step)["total_loss"])


def compile_in_place(context: Context, module: nn.Module) -> None:
    """Compile a module's `forward`. DeepSpeed's hooks, if it has some, stay outside."""
    backend = "inductor" if context.on_gpu else "aot_eager"  # on the CPU, inductor would take a compiler and minutes
    module.forward = torch.compile(module.forward, dynamic=False, backend=backend)  # type: ignore[method-assign]


def compile_blocks(context: Context, method: Steps) -> None:
    vidtwin = method.generator.module.vidtwin
    for transformer in (vidtwin.encoder, vidtwin.decoder):
        for block in transformer.blocks:  # type: ignore[union-attr]
            compile_in_place(context, block)


def compile_lpips(context: Context, method: Steps) -> None:
    assert method.reconstruction.perceptual is not None
    compile_in_place(context, method.reconstruction.perceptual)


def switch_benchmark_on() -> None:
    torch.backends.cudnn.benchmark = True

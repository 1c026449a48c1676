"""Clips a second of the paper's training on one GPU, and where the time and the memory of a step go."""

from __future__ import annotations

import gc
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from tests.gpu.clock import settle
from tests.gpu.findings import Context, held, measured
from tests.gpu.timed_step import Parts, base_config, clips_per_second, timed_method
from trainer import distributed
from trainer.distributed import Ranks
from trainer.estimate.memory import estimate
from trainer.estimate.stopwatch import Steps
from trainer.telemetry.gpu_peaks import known_device, peak

MICRO_BATCHES = (6, 1, 12)  # the middle one first: the budget may end
STEPS = 4  # of each count
ROOT = f"{Path(__file__).parents[2]}/"
OURS = ("trainer/", "model/", "data_pipeline/")
FULL = (6, 12)  # clips that fill a GPU, so that the aims below are meant for them
LEAST_MFU = 0.25  # of the data sheet's dense peak; docs/performance.md estimates 0.21 uncompiled and 0.34 compiled


def run(context: Context) -> None:
    ranks = distributed.start(5)
    try:
        for clips in MICRO_BATCHES if context.on_gpu else (2,):
            one_size(context, ranks, clips)
            gc.collect()  # engines refer to themselves
            if context.on_gpu:
                torch.cuda.empty_cache()
    finally:
        distributed.stop()


def one_size(context: Context, ranks: Ranks, clips: int) -> None:
    """One micro-batch, bf16, ZeRO 1."""
    name = f"{clips} clips"
    config = base_config(context.on_gpu, clips)
    before = 0
    if context.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()  # what is left of the size before
    method = timed_method(config, ranks)
    rate = clips_per_second(method, seconds=3.0 if context.on_gpu else 0.1)
    measured(f"{name}: speed", rate, "clips/s")
    estimated = estimate(config, 1, modes=False)
    if context.on_gpu:
        measured(f"{name}: most memory", (torch.cuda.max_memory_allocated() - before) / 1e9, "GB")
        measured(f"{name}: most memory with what torch keeps in store", torch.cuda.max_memory_reserved() / 1e9, "GB")
        measured(f"{name}: left in memory by the size before", before / 1e9, "GB")
        device = known_device(torch.cuda.get_device_name())
        if device is not None:
            most = peak(config, device)
            measured(f"{name}: MFU of the blocks", 100 * rate * method.facts.flops_per_sample / most, "%")
            whole = rate * estimated.flops_per_clip / most
            measured(f"{name}: MFU of the whole step", 100 * whole, "%")
            if clips in FULL:
                held(
                    f"{name}: what the whole step lacks of {100 * LEAST_MFU:g} % MFU",
                    max(0.0, LEAST_MFU - whole),
                    0.0,
                    "0",
                )
    total = estimated.stages[config.zero.stage].total
    measured(f"{name}: memory by launch/estimate.py", total / 1e9, "GB")
    if context.on_gpu and clips in FULL:
        off = abs(torch.cuda.max_memory_allocated() - before - total) / total
        held(f"{name}: memory against the estimate", off, 0.15, "launch/estimate.py")
    parts_of(context, method, name)
    waits(context, method, name)
    without_timer(context, method, name)
    if clips == 6 or not context.on_gpu:
        profiled(context, method, name)


def parts_of(context: Context, method: Steps, name: str) -> None:
    """Where a step goes, and DeepSpeed's share: all of its `step`, and what its `backward` does after autograd."""
    generator, discriminator = method.generator.engine, method.discriminator
    targets = {
        "forward": (generator, "forward"),
        "backward": (generator, "backward"),
        "DeepSpeed's step": (generator, "step"),
        "generator's micro-batch": (method, "_generator_micro_batch"),
        "discriminator's micro-batch": (method, "_discriminator_micro_batch"),
    }
    if hasattr(generator, "_backward_epilogue"):
        targets["DeepSpeed after backward"] = (generator, "_backward_epilogue")
    if discriminator is not None:
        targets["DeepSpeed's step of the discriminator"] = (discriminator.engine, "step")
    parts = Parts(context.device)
    settle(context.device)
    with parts.watched(targets):
        begin = time.perf_counter()
        for _ in range(STEPS):
            method.step(method.batch, method.adversarial_step)
        handed_over = time.perf_counter() - begin
        settle(context.device)
        whole = time.perf_counter() - begin
    device = parts.on_device()
    measured(
        f"{name}: a step, and the host's part of it",
        f"{1e3 * whole / STEPS:.4g} ms, {1e3 * handed_over / STEPS:.4g} ms",
    )
    for label, seconds in device.items():
        both = f"{1e3 * seconds / STEPS:.4g} ms on the device, {1e3 * parts.host[label] / STEPS:.4g} ms on the host"
        measured(f"{name}: {label}", both)
    share = sum(seconds for label, seconds in device.items() if label.startswith("DeepSpeed")) / whole
    measured(f"{name}: DeepSpeed's share", 100 * share, "%")


def waits(context: Context, method: Steps, name: str) -> None:
    """How often a step makes the host wait for the device."""
    from deepspeed.accelerator import get_accelerator

    kind = type(get_accelerator())
    with patch.object(kind, "synchronize", autospec=True, side_effect=kind.synchronize) as calls:
        for _ in range(STEPS):
            method.step(method.batch, method.adversarial_step)
    measured(f"{name}: DeepSpeed's calls of synchronize", calls.call_count / STEPS, "a step")
    if context.on_gpu:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                method.step(method.batch, method.adversarial_step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        places = [
            f"{w.filename.rsplit('site-packages/', 1)[-1].removeprefix(ROOT)}:{w.lineno}"
            for w in caught
            if "synchroniz" in str(w.message)
        ]
        measured(f"{name}: waits of the host for a value", len(places) * 1.0, "a step")
        ours = [place for place in places if place.startswith(OURS)]
        held(f"{name}: waits of the host that are ours", float(len(ours)), 0.0, "none")
        for place in sorted(set(places)):
            measured(f"{name}: waits at {place}", places.count(place) * 1.0, "a step")


def without_timer(context: Context, method: Steps, name: str) -> None:
    """The speed where DeepSpeed's throughput timer, which waits for the device, is on, and where it is off."""
    timers = [engine.engine.tput_timer.config for engine in method.engines()]
    before = [timer.enabled for timer in timers]
    for enabled in (True, False):
        for timer in timers:
            timer.enabled = enabled
        rate = clips_per_second(method, seconds=2.0 if context.on_gpu else 0.1)
        usual = " (as configured)" if all(value is enabled for value in before) else ""
        measured(f"{name}: speed, DeepSpeed's timer {'on' if enabled else 'off'}{usual}", rate, "clips/s")
    for timer, enabled in zip(timers, before, strict=True):
        timer.enabled = enabled


def profiled(context: Context, method: Steps, name: str) -> None:
    """The longest kernels of one step, as a table in the results, and how long the device did nothing."""
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if context.on_gpu else [])
    settle(context.device)
    with profile(activities=kinds) as record:
        begin = time.perf_counter()
        method.step(method.batch, method.adversarial_step)
        settle(context.device)
        whole = time.perf_counter() - begin
    averages = record.key_averages()
    order = "self_device_time_total" if context.on_gpu else "self_cpu_time_total"
    file = context.results / "profile.txt"
    file.write_text(averages.table(sort_by=order, row_limit=30, max_name_column_width=90))
    measured(f"{name}: the longest kernels", file.name)
    if context.on_gpu:
        busy = sum(event.self_device_time_total for event in averages) / 1e6
        measured(f"{name}: the device does nothing, under the profiler", 100 * max(0.0, 1 - busy / whole), "%")

"""What `--check` of a training script says: whether a training can start, and what it will take. Nothing is written.

The data are opened as a training opens them. The networks are built on shapes alone (`trace.py`), so that a laptop
checks a run of eight GPUs in seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from data_pipeline.dataset.presence import check_present
from data_pipeline.read.loader import Position
from trainer.checkpoint.files import fault, marker_of, read_marker, read_state, step_name, steps_in
from trainer.checkpoint.fork import check_is_fork, parent_of, read_parent
from trainer.checkpoint.lookup import find_checkpoint
from trainer.checkpoint.same_run import check_same_run
from trainer.config.learning import Precision
from trainer.config.networks import NetworkRunConfig
from trainer.config.running import NEVER
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.device import own_device
from trainer.engine.saved_bytes import bytes_of_counts
from trainer.estimate.memory import Estimate, estimate
from trainer.estimate.options import Options
from trainer.estimate.out_of_memory import HOLES, UNCOUNTED, advice
from trainer.estimate.prediction import predict
from trainer.estimate.speed import not_known, run_text
from trainer.estimate.trace import Network, Trace, Tracer
from trainer.telemetry.gpu_peaks import known_device

DEFAULT_GPU = "h100"  # whose speed is estimated where this machine has no GPU, as `launch/estimate.py` does


Builder = Callable[[Any, Ranks], Any]
"""Makes the `trainer.method.MethodBuilder` of a kind of training, whose loader is a `SampleLoader`."""


def checked(config: NetworkRunConfig, ranks: int, builder: Builder, tracer_for: Callable[[Any], Tracer]) -> list[str]:
    """Check a training on a number of ranks, and estimate what it takes.

    Args:
        config: the training, whose places `launch/training_places.py` has let pass.
        ranks: how many processes will share the global batch.
        builder: opens the data of this kind of training, whose `config.data` has a `cache_dir`.
        tracer_for: looks at the builder with its open data, and traces the step on them; ValueError where the network
            does not fit them.
    Returns:
        Lines for the console: data, start, memory of a rank, speed, hours, disk.
    Raises:
        ValueError: the training would be refused, or its memory or its checkpoints would find no room.
        StoreError: a store does not answer.
    """
    device = own_device(config.device)
    config.check_device(device.type)
    data, done, tracer = _opened(config, ranks, builder, tracer_for)
    found = estimate(config, ranks, modes=False, tracer=tracer)
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return [
        *(f"data          {line}" for line in data),
        f"start         {_start(config, done)}",
        f"memory        {_memory(config, found, ranks, (gpu.name, gpu.total_memory) if gpu else None)}",
        *_speed_and_hours(config, found.trace, ranks, gpu.name if gpu else None, config.steps - done),
        f"checkpoints   {_disk(config, found.trace, ranks)}",
        "nothing was started or written",
    ]


def _opened(
    config: Any, ranks: int, make_builder: Builder, tracer_for: Callable[[Any], Tracer]
) -> tuple[list[str], int, Tracer]:
    """Open the data as rank 0 does, and the newest checkpoint's description where there is one.

    A store's index is downloaded to a folder that is removed at the end.

    Returns:
        A line for each split that is read, one for what decides their order, and one for data that were added; the
        steps that the checkpoint has done; what traces the step on these data.
    """
    with TemporaryDirectory() as folder:
        here = replace(config, data=replace(config.data, cache_dir=folder))
        builder = make_builder(here, Ranks(0, ranks, 0, torch.device("cpu"), None))
        try:
            tracer = tracer_for(builder)
            check_present(builder.loader.files.store, builder.loader.files.dataset)
            known = {
                key: str(value)[:12] for key, value in builder.loader.identity.items() if isinstance(value, str | int)
            }
            identity = ", ".join(f"{key} {value}" for key, value in known.items())
            lines = [*builder.describe_data(), f"order: {identity}"]
            directory = _origin(config)
            if directory is None:
                return lines, 0, tracer
            check_same_run(directory, config)
            check_is_fork(config, directory)
            state = read_state(directory)
            grown = builder.loader.continue_from(state["order"], Position(state["epoch"], state["consumed"]))
            return [*lines, *([grown] if grown else [])], int(state["step"]), tracer
        finally:
            builder.loader.close()


def _origin(config: NetworkRunConfig) -> Path | None:
    """The run's own checkpoint that it would go on from; None for a new run, whose parent is looked at if it forks.

    Raises:
        ValueError: as the start of a training would.
    """
    steps, settings = steps_in(Path(config.output) / "checkpoints", complete=True), config.checkpoint
    if not steps:
        if config.fork_from:
            read_parent(parent_of(config), config, 0, 1)
        return None
    if settings.resume == NEVER:
        raise ValueError(
            f"{config.output} holds {step_name(steps[-1])} and checkpoint.resume=never; choose another output, or set "
            "checkpoint.resume=auto to go on from it"
        )
    directory = find_checkpoint(Path(config.output), settings.resume_step)
    for name, entry in read_marker(marker_of(directory)).items():
        if settings.resume_step is not None and (complaint := fault(directory / name, entry)):
            raise ValueError(f"checkpoint.resume={settings.resume}: {complaint}: that checkpoint is damaged")
    return directory


def _start(config: NetworkRunConfig, done: int) -> str:
    if done > config.steps:
        raise ValueError(f"steps={config.steps} is less than the {done} steps that the newest checkpoint has done")
    if config.fork_from and not done:
        return f"a new run in {config.output}, a fork of {config.fork_from}"
    if done:
        return f"goes on after step {done} of {config.steps}, from {config.output}/checkpoints/{step_name(done)}"
    return f"a new run of {config.steps} steps in {config.output}"


def _memory(config: NetworkRunConfig, found: Estimate, ranks: int, gpu: tuple[str, int] | None) -> str:
    """The estimate for a rank, against the memory of its GPU.

    Args:
        gpu: name and bytes of the GPU; None where there is none to compare with.
    Raises:
        ValueError: the estimate alone is more than the GPU has.
    """
    total = found.stages[config.zero.stage].total
    batch = f"{ranks} x {found.accumulation} x {found.micro_batch} clips"
    line = f"{_size(total)} a rank at ZeRO {config.zero.stage}, {config.precision.value}, {batch}"
    if gpu is None:
        return f"{line}; this machine has no GPU to compare with"
    name, capacity = gpu
    if total > capacity:
        remedy = advice(config, estimate(config, ranks, tracer=found.tracer), ranks, capacity).partition("\n")[0]
        raise ValueError(f"a rank needs {_size(total)} and {name} has {capacity / 1e9:.3g} GB; {remedy}")
    close = HOLES * total + UNCOUNTED > capacity
    warning = "; that is close: the GPU's context and holes between allocations are not counted" if close else ""
    return f"{line}, of {capacity / 1e9:.3g} GB ({name}){warning}"


def _speed_and_hours(config: NetworkRunConfig, traced: Trace, ranks: int, gpu: str | None, steps: int) -> list[str]:
    """Lines on the time of a step and of all steps that are left.

    Args:
        gpu: name of the GPU of this machine; None where there is none, and `DEFAULT_GPU` is taken.
        steps: those left to do.
    """
    device = known_device(gpu) if gpu is not None else DEFAULT_GPU
    if device is None:
        return [f"speed         no data sheet of {gpu} is known; launch/estimate.py --device this times real steps"]
    speed, how = predict(config, traced, ranks, Options(device))
    if not speed.is_of_arithmetic:
        return [f"speed         {not_known(speed)}; {device}, {how}", "time          not known either"]
    return [
        f"speed         {speed.step:.3g} s a step, {speed.clips_per_second:.3g} clips/s; {device}, {how}",
        f"time          {run_text(speed, steps, ranks)}",
    ]


def _disk(config: NetworkRunConfig, traced: Trace, ranks: int) -> str:
    """The checkpoints that will be there at once, against the free disk of the output.

    Raises:
        ValueError: they do not fit.
    """
    one, settings = checkpoint_bytes(config, traced, ranks), config.checkpoint
    count = settings.keep + 1 + (config.steps // settings.keep_every if settings.keep_every else 0)
    output = Path(config.output).absolute()
    folder = next(place for place in (output, *output.parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    there = sum(file.stat().st_size for file in (output / "checkpoints").rglob("*") if file.is_file())
    line = f"{_size(one)} each, {count} at once: {_size(count * one)}; {_size(free)} are free"
    if count * one > free + there:
        raise ValueError(
            f"output={config.output} has no room for the checkpoints ({line} at {folder}); free some, choose another "
            "disk, or lower checkpoint.keep or raise checkpoint.keep_every"
        )
    return f"{line} at {folder}"


def _size(count: int) -> str:
    """Bytes with a unit that leaves no zeros behind the point."""
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def checkpoint_bytes(config: NetworkRunConfig, traced: Trace, ranks: int) -> int:
    """Bytes of one checkpoint, the files of all ranks together."""
    rounded = config.precision is not Precision.fp32
    stage, total = config.zero.stage, _network_bytes(traced.network, config.zero.stage, rounded, ranks)
    if traced.discriminator is not None and isinstance(config, TrainConfig):
        total += _network_bytes(traced.discriminator, config.zero.discriminator_stage, False, ranks)
    if config.ema.decay > 0:
        total += 4 * (ranks * _share(traced.network, ranks) if stage else traced.network.learning)
    return total + 4 * traced.network.frozen


def _network_bytes(network: Network, stage: int, rounded: bool, ranks: int) -> int:
    share = _share(network, ranks) if stage else network.learning
    return sum(
        bytes_of_counts(
            stage=stage,
            rounded=rounded,
            learning=network.learning,
            frozen=network.frozen,
            buffers=network.buffer_bytes,
            share=share,
            rank=rank,
            ranks=ranks,
        )
        for rank in range(ranks)
    )


def _share(network: Network, ranks: int) -> int:
    return -(-network.learning // ranks)

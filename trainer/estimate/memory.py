"""Memory of one rank of a training, estimated before anything is started.

Activations and loss networks come from a run of the step on shapes alone (`trace.py`). What DeepSpeed 0.19.8 keeps of
weights, gradients and optimizer state is computed here for each ZeRO stage. The device's context, the libraries'
workspaces and the holes between allocations are not counted, so a device needs more than the estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.config.learning import Precision, Recompute
from trainer.config.networks import NetworkRunConfig
from trainer.config.train import TrainConfig
from trainer.estimate.trace import Trace, Tracer, trace

MASTER, MOMENTS = 4, 8  # bytes a parameter: fp32 weight, Adam's two fp32 moments

STAGE_0_BUCKET = 500_000_000  # elements that DeepSpeed averages at once at stage 0, in a copy
STAGE_3_LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters: up to here gathered weights stay gathered


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: kept between steps, and needed on top while a step runs; `host` is in host memory.

    Args:
        weights: of the network that is trained, as it uses them.
        optimizer: fp32 masters and Adam's moments of that network.
        average: the moving average.
        discriminator: VidTwin's; its weights, gradients and optimizer state.
        perceptual: weights of the perceptual networks of the loss and of validation.
        gradients: of that network's weights, with DeepSpeed's buffers for averaging them.
        activations: what the largest moment of a step takes on top, of all networks; most often their activations.
        host: what is offloaded, and a copy of frozen weights, in host memory; not part of `total`.
    """

    weights: int
    optimizer: int
    average: int
    discriminator: int
    perceptual: int
    gradients: int
    activations: int
    host: int

    @property
    def total(self) -> int:
        """Bytes on the device at the peak of a step."""
        return sum(getattr(self, name) for name in COLUMNS)


COLUMNS = ("weights", "optimizer", "average", "discriminator", "perceptual", "gradients", "activations")


@dataclass(frozen=True)
class Estimate:
    """The memory of a rank by ZeRO stage, and that of the configured stage by way of recomputation.

    Args:
        stages, modes: the memories.
        micro_batch, accumulation: how a rank's share of the global batch is divided.
        trace: of one micro-batch in the configured way.
        tracer: what made it.
    """

    stages: dict[int, Memory]
    modes: dict[Recompute, Memory]
    micro_batch: int
    accumulation: int
    trace: Trace
    tracer: Tracer

    @property
    def flops_per_clip(self) -> float:
        """Floating-point operations of all networks for a clip, with what is recomputed."""
        return self.trace.flops / self.micro_batch


def estimate(config: NetworkRunConfig, ranks: int, *, modes: bool = True, tracer: Tracer = trace) -> Estimate:
    """Estimate a configuration on a number of ranks.

    Args:
        config: the training.
        ranks: how many accelerators share the global batch.
        modes: compare the ways of recomputing activations, which costs seconds for each.
        tracer: traces the step of this kind of training.
    Raises:
        ValueError: the global batch does not divide among the ranks.
    """
    if ranks < 1:
        raise ValueError(f"--gpus {ranks} must be at least 1")
    micro_batch, accumulation = config.split_batch(ranks)
    mode = config.activation_checkpointing.mode
    traces = {mode: tracer(config, micro_batch)}
    for other in Recompute if modes else ():
        if other not in traces:
            recompute = replace(config.activation_checkpointing, mode=other)
            traces[other] = tracer(replace(config, activation_checkpointing=recompute), micro_batch)
    return Estimate(
        stages={stage: memory(config, traces[mode], ranks, stage, accumulation) for stage in (0, 1, 2, 3)},
        modes={m: memory(config, traces[m], ranks, config.zero.stage, accumulation) for m in Recompute if m in traces},
        micro_batch=micro_batch,
        accumulation=accumulation,
        trace=traces[mode],
        tracer=tracer,
    )


def memory(config: NetworkRunConfig, traced: Trace, ranks: int, stage: int, accumulation: int) -> Memory:
    """Memory of one rank at a ZeRO stage.

    Args:
        config: the training; its own stage is not looked at.
        traced: what the step takes.
        ranks, stage, accumulation: how it is run.
    """
    net = traced.network
    width = 4 if config.precision is Precision.fp32 else 2
    share = -(-net.learning // ranks) if stage else net.learning
    weights = width * (net.learning + net.frozen)
    state = share * (MOMENTS + (0 if stage == 0 and width == 4 else MASTER))  # fp32 weights are their own masters
    average = share * MASTER if config.ema.decay > 0 else 0
    gradients, step = _gradients_and_step(config, traced, ranks, stage, accumulation)
    gathered = 0
    if stage == 3:
        gathered = min(weights, width * STAGE_3_LIVE)
        weights = -(-weights // ranks)
    host = 4 * net.frozen  # `Engine.frozen`, their exact values
    if stage and config.zero.offload_optimizer:
        host, state, average = host + state + average + MASTER * share, 0, 0  # and fp32 gradients
    if stage == 3 and config.zero.offload_parameters:
        host, weights = host + weights, 0
    return Memory(
        weights=weights + net.buffer_bytes,
        optimizer=state,
        average=average,
        discriminator=_discriminator(config, traced, ranks),
        perceptual=traced.perceptual_bytes,
        gradients=gradients,
        activations=max(step - gradients, 0) + gathered,
        host=host,
    )


def _gradients_and_step(
    config: NetworkRunConfig, traced: Trace, ranks: int, stage: int, accumulation: int
) -> tuple[int, int]:
    """Bytes of the network's gradients with DeepSpeed's buffers for them, and the most that a step adds at once.

    A step is as large as its largest part: the backward pass, averaging over the ranks, or the update.
    """
    count, width = traced.network.learning, 4 if config.precision is Precision.fp32 else 2
    whole, part = width * count, width * -(-count // ranks)
    bucket = width * min(config.zero.bucket, count) * (2 if config.zero.overlap_comm and stage in (1, 2) else 1)
    backward = traced.with_gradients if accumulation == 1 else whole + traced.activations
    offloaded = stage > 0 and config.zero.offload_optimizer
    if stage > 1 and offloaded:
        part = 0  # averaged gradients go to the host as they come
    wide = 0 if width == 4 or offloaded else MASTER * -(-count // ranks)  # fp32 gradients of the update
    if stage == 0:
        averaging = whole + width * min(count, STAGE_0_BUCKET)  # also where there is nobody to average with
        return whole, max(backward, averaging, whole + (0 if width == 4 else MASTER * count))
    if stage == 1:
        return whole + bucket, max(backward + bucket, whole + bucket + part, 2 * part + wide)
    if stage == 2 and accumulation == 1:  # this rank's part of the gradients grows while activations go
        backward = traced.activations + (traced.with_gradients - traced.activations) // ranks
    else:
        backward = traced.activations + part
    return part + bucket, max(bucket + backward, part + bucket, 2 * part + wide)


def _discriminator(config: NetworkRunConfig, traced: Trace, ranks: int) -> int:
    """fp32 weights, gradients, and optimizer state, the last with masters divided among the ranks at stage 1."""
    if traced.discriminator is None or not isinstance(config, TrainConfig):
        return 0
    count = traced.discriminator.learning
    if config.zero.discriminator_stage == 0:
        return count * (4 + 4 + MOMENTS) + traced.discriminator.buffer_bytes
    return count * (4 + 4) + -(-count // ranks) * (MASTER + MOMENTS) + traced.discriminator.buffer_bytes


# ---- for reading ----------------------------------------------------------------------------------------------------


def table(estimated: Estimate, config: NetworkRunConfig, ranks: int) -> str:
    """The estimate as text, in GB (10^9 bytes) a rank."""
    columns = _columns(estimated)
    stages = {f"ZeRO {stage}": memory for stage, memory in estimated.stages.items()}
    lines = [f"{'GB a rank':<16}" + "".join(f"{name:>15}" for name in (*columns, "total", "on the host"))]
    lines += _rows(stages, f"ZeRO {config.zero.stage}", columns)
    if len(estimated.modes) > 1:
        names = {mode: mode.value for mode in estimated.modes}
        names[Recompute.every] = f"every {config.activation_checkpointing.every}"
        modes = {names[mode]: memory for mode, memory in estimated.modes.items()}
        lines += ["", f"at ZeRO {config.zero.stage}, by activation_checkpointing.mode"]
        lines += _rows(modes, names[config.activation_checkpointing.mode], columns)
    batch = f"{ranks} ranks x {estimated.accumulation} x {estimated.micro_batch} clips"
    network, beside = estimated.trace.network, ""
    if isinstance(config, TrainConfig):
        beside = ", discriminator and LPIPS included"
    frozen = f", {network.learning / 1e6:.4g} of them learn" if network.frozen else ""
    lines += [
        "",
        f"parameters      {(network.learning + network.frozen) / 1e6:.4g} million{frozen}",
        f"global batch    {config.global_batch} = {batch}, {config.precision.value}",
        f"work a clip     {estimated.flops_per_clip / 1e12:.3g} TFLOP{beside}",
    ]
    return "\n".join(lines)


def _columns(estimated: Estimate) -> list[str]:
    """Those of `COLUMNS` that this kind of training has."""
    memories = [*estimated.stages.values(), *estimated.modes.values()]
    of_vidtwin = ("discriminator", "perceptual")
    return [name for name in COLUMNS if name not in of_vidtwin or any(getattr(memory, name) for memory in memories)]


def _rows(memories: Mapping[str, Memory], this: str, columns: Sequence[str]) -> list[str]:
    """A line for each memory; the one named `this` is the configured one."""
    lines = []
    for name, memory in memories.items():
        values = [*(getattr(memory, column) for column in columns), memory.total, memory.host]
        marked = f"{name} (this)" if name == this else name
        lines.append(f"{marked:<16}" + "".join(f"{value / 1e9:>15.3g}" for value in values))
    return lines

"""Clips a second of a training on N ranks: from steps that were timed here, or from a data sheet.

Timed steps (`stopwatch.py`) are the real ones, of the configuration with fewer blocks; blocks are alike, so that time
is linear in their number. What other machines add is data over bandwidth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean

from trainer.config.learning import Precision, Recompute
from trainer.config.networks import NetworkRunConfig
from trainer.config.train import TrainConfig
from trainer.estimate.trace import Trace

# DeepSpeed's stage3_max_reuse_distance: ZeRO 3 keeps a gathered weight that is used again within so many elements.
STAGE_3_REUSE = 1_000_000_000
SHORTEST_STEP = 2e-4
"""Seconds. A step starts some hundred kernels even of one block, two microseconds or more each, which stands in no data
sheet. Where its arithmetic takes less than this, the data sheet says nothing about the step."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a step at one depth, on every rank at once.

    Args:
        depth: transformer blocks in each half.
        seconds: with the discriminator and its term in the generator's loss.
        before: before gan.start; None where nothing is different then.
        update: of `seconds`, the generator's update; 0 where it was not asked for.
    """

    depth: int
    seconds: float
    before: float | None = None
    update: float = 0.0


@dataclass(frozen=True)
class Speed:
    """What is predicted.

    Args:
        step: seconds a step, with the discriminator and its term in the generator's loss.
        before: the same before gan.start; None where nothing is different then.
        communication: seconds in both that were not timed: traffic over bandwidth.
        clips: clips in a step, of all ranks.
    """

    step: float
    before: float | None
    communication: float
    clips: int

    @property
    def clips_per_second(self) -> float:
        """Over all ranks."""
        return self.clips / self.step

    @property
    def is_of_arithmetic(self) -> bool:
        """Whether arithmetic decides how long a step takes, so that a data sheet can say it (`SHORTEST_STEP`)."""
        return self.step - self.communication >= SHORTEST_STEP


def depths_to_time(config: TrainConfig) -> list[int]:
    """A quarter and half of the configured depth, or just that where it is small.

    Not deeper, because one rank has to hold what N ranks will share. Not shallower, because very few blocks run faster
    than many: on a processor their weights stay in its caches.
    """
    depth, mode = config.model.depth, config.activation_checkpointing.mode
    unit = config.activation_checkpointing.every if mode is Recompute.every else 1  # whole groups of blocks
    low = max(1, depth // (4 * unit)) * unit
    high = max(low + unit, depth // (2 * unit) * unit)
    return [low, high] if high < depth else [depth]


def from_timings(
    timings: list[Timing], config: TrainConfig, ranks: int, *, timed_on: int, sent: float, bandwidth: float
) -> Speed:
    """Predict from timed steps.

    Args:
        timings: one for each of `depths_to_time`.
        config: the training.
        ranks: those to predict.
        timed_on: those that the timings are of. On a single one the update of all weights was timed, of which
            ZeRO leaves each rank its share. With several of many, their traffic was timed and all ranks' is added.
        sent: bytes that a rank sends in a step of `ranks` (see `traffic`).
        bandwidth: GB/s of it.
    """
    depth = config.model.depth
    saved = communication = 0.0
    if ranks > timed_on:
        communication = sent / (bandwidth * 1e9)
        if timed_on == 1 and config.zero.stage > 0:
            (update,) = _lines([{timing.depth: timing.update for timing in timings}], depth)
            saved = update * (1 - 1 / ranks)
    early = {timing.depth: timing.before for timing in timings if timing.before is not None}
    step, *before = _lines([{timing.depth: timing.seconds for timing in timings}, *([early] if early else [])], depth)
    rest = communication - saved
    return Speed(
        step=step + rest,
        before=before[0] + rest if before else None,
        communication=communication,
        clips=config.data.global_batch,
    )


def _lines(phases: list[dict[int, float]], depth: int) -> list[float]:
    """Each phase's seconds at a depth, from those at two others, or at itself.

    A block takes the same in every phase, so they share one slope, which halves its noise. A falling one is nothing but
    noise, and taken as flat.
    """
    depths = sorted(phases[0])
    if len(depths) == 1:
        assert depths == [depth], f"timed at {depths}, wanted at {depth}"
        return [seconds[depth] for seconds in phases]
    low, high = depths
    slope = max(0.0, mean((seconds[high] - seconds[low]) / (high - low) for seconds in phases))
    return [mean(seconds.values()) + slope * (depth - mean(depths)) for seconds in phases]


def from_data_sheet(
    traced: Trace, config: NetworkRunConfig, ranks: int, flops_per_second: float, *, sent: float, bandwidth: float
) -> Speed:
    """Predict from operations.

    Args:
        traced: one micro-batch of the step.
        config: the training.
        ranks: those to predict.
        flops_per_second: what one of them is assumed to reach over all of a step but communication.
        sent, bandwidth: as in `from_timings`.
    """
    _, rounds = config.split_batch(ranks)
    communication = sent / (bandwidth * 1e9) if ranks > 1 else 0.0
    seconds = rounds * traced.flops / flops_per_second
    return Speed(seconds + communication, None, communication, config.global_batch)


def traffic(config: NetworkRunConfig, traced: Trace, ranks: int) -> float:
    """Bytes that each rank sends, and receives, in a step, where collectives go round a ring.

    Gathering or scattering s bytes takes s (N-1)/N of them, an all-reduce twice that. DeepSpeed 0.19.8 all-reduces the
    gradients at stages 0 to 2, at 2 those of each micro-batch; 1 and 2 gather the weights after the update; 3 gathers
    them for each micro-batch, again for its backward pass where they are many, and scatters its gradients.
    """
    _, rounds = config.split_batch(ranks)
    stage, width = config.zero.stage, 4 if config.precision is Precision.fp32 else 2
    learning, whole = width * traced.network.learning, width * (traced.network.learning + traced.network.frozen)
    if stage == 3:
        gathers = 2 if 2 * whole / width > STAGE_3_REUSE else 1
        moved = rounds * (gathers * whole + learning)
    else:
        moved = 2 * learning * (rounds if stage == 2 else 1) + (learning if stage else 0)
    if traced.discriminator is not None and isinstance(config, TrainConfig):
        discriminator = 4 * traced.discriminator.learning
        moved += 2 * discriminator + (discriminator if config.zero.discriminator_stage else 0)
        if config.gan.adaptive and not config.gan.local_weight:  # two gradients of the last layer, fp32
            moved += rounds * 2 * 2 * 4 * config.model.width * config.model.patch_size**2 * 3
    return moved * (ranks - 1) / ranks


# ---- for reading ----------------------------------------------------------------------------------------------------


def hours(speed: Speed, steps: int) -> float:
    """Hours that a number of steps take, each as long as one with the discriminator."""
    return steps * speed.step / 3600


def run_text(speed: Speed, steps: int, ranks: int, price: float | None = None) -> str:
    """How long a run takes and what it costs, as a line that ends with what is not in it.

    Args:
        steps: of the run.
        ranks: GPUs that it takes.
        price: of one GPU for one hour, in any currency; None = it is not known.
    """
    whole = hours(speed, steps)
    cost = "" if price is None else f", which cost {ranks * whole * price:.3g} at {price:g} an hour"
    return (
        f"{whole:.3g} hours for {steps} steps, {ranks * whole:.3g} GPU hours{cost}; validation, saves and waits for "
        "data come on top"
    )


def not_known(speed: Speed) -> str:
    """Why the data sheet does not tell the speed of this step, as a line."""
    seconds = speed.step - speed.communication
    return (
        f"not known: the arithmetic of a step takes {1e6 * seconds:.3g} microseconds, and starting its kernels, which "
        "no data sheet states, takes longer"
    )


def text(speed: Speed, sent: float, bandwidth: float) -> str:
    """The speed, and what in it is arithmetic, as lines."""
    lines = [f"speed           {speed.clips_per_second:.3g} clips/s over all ranks, {speed.step:.3g} s a step"]
    if speed.before is not None:
        lines[0] += ", with the discriminator"
        lines.append(f"before gan.start{speed.clips / speed.before:>5.3g} clips/s, {speed.before:.3g} s a step")
    if speed.communication > 0:
        at = "no time" if math.isinf(bandwidth) else f"at {bandwidth:g} GB/s (assumed: --bandwidth)"
        lines.append(f"communication   {speed.communication:.3g} s of that: {sent / 1e9:.3g} GB a rank, {at}")
    return "\n".join(lines)

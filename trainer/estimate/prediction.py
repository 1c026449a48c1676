"""The speed of a training on N ranks, and where the figure comes from: steps timed here, or a data sheet."""

from __future__ import annotations

import torch

from trainer.config.networks import NetworkRunConfig
from trainer.config.run import Device
from trainer.config.train import TrainConfig
from trainer.engine.device import device_kind
from trainer.estimate.options import ASSUMED_SHARE, Options
from trainer.estimate.speed import (
    Speed,
    depths_to_time,
    from_data_sheet,
    from_timings,
    not_known,
    run_text,
    text,
    traffic,
)
from trainer.estimate.stopwatch import TimingPlan, time_steps
from trainer.estimate.trace import Trace
from trainer.telemetry.gpu_peaks import peak


def predicted(config: NetworkRunConfig, traced: Trace, ranks: int, options: Options) -> str:
    """The speed on a number of ranks, where it comes from, and hours and cost of the run, as text.

    Arguments and errors as of `predict`.
    """
    speed, how = predict(config, traced, ranks, options)
    if options.device != "this" and not speed.is_of_arithmetic:
        return f"speed           {not_known(speed)}\n                {how}\ntime            not known either"
    return "\n".join(
        [
            text(speed, traffic(config, traced, ranks), options.bandwidth),
            f"                {how}",
            f"time            {run_text(speed, config.steps, ranks, options.price)}",
        ]
    )


def predict(config: NetworkRunConfig, traced: Trace, ranks: int, options: Options) -> tuple[Speed, str]:
    """The speed on a number of ranks, and a line that says where it comes from.

    Args:
        config: the training.
        traced: one micro-batch of its step.
        ranks: those to predict.
        options: how.
    Raises:
        ValueError, StopwatchError: as `measured`.
    """
    if options.device == "this":
        assert isinstance(config, TrainConfig), "launch/estimate.py refuses it for others"
        timed_on = options.measure or ranks_to_time(config.device, ranks)
        speed = measured(config, traced, ranks, timed_on=timed_on, bandwidth=options.bandwidth)
        depths = " and ".join(str(depth) for depth in depths_to_time(config))
        count = f"{timed_on} ranks" if timed_on > 1 else "one rank"
        return speed, f"from steps timed here: {count}, depth {depths} for {config.model.depth}"
    rate, share, sent = peak(config, options.device), options.share or ASSUMED_SHARE, traffic(config, traced, ranks)
    speed = from_data_sheet(traced, config, ranks, rate * share, sent=sent, bandwidth=options.bandwidth)
    assumed = "given" if options.share else "an assumption, no measurement"
    sheet = f"from a data sheet: {share:.3g} ({assumed}) of {rate / 1e12:.4g} TFLOP/s a rank"
    measuring = "; launch/estimate.py --device this measures" if isinstance(config, TrainConfig) else ""
    return speed, f"{sheet}{measuring}"


def measured(config: TrainConfig, traced: Trace, ranks: int, *, timed_on: int, bandwidth: float) -> Speed:
    """Predict the speed on a number of ranks from steps timed now, on this machine.

    Args:
        config: the training.
        traced: one micro-batch of its step.
        ranks: those to predict.
        timed_on: how many of them this machine is; see `ranks_to_time`.
        bandwidth: GB/s to and from the ranks that it is not.
    Raises:
        ValueError: more than there are ranks or GPUs, or what this device cannot do.
        StopwatchError: a rank failed, for want of memory for instance.
    """
    if not 1 <= timed_on <= ranks:
        raise ValueError(f"--measure {timed_on} must lie between 1 and the {ranks} of --gpus")
    if device_kind(config.device) == "cuda" and timed_on > torch.cuda.device_count():
        raise ValueError(f"--measure {timed_on} is more than the {torch.cuda.device_count()} GPUs of this machine")
    micro_batch, rounds = config.split_batch(ranks)
    update = timed_on == 1 < ranks and config.zero.stage > 0
    plan = TimingPlan(micro_batch, rounds, depths_to_time(config), update)
    timings = time_steps(config, plan, timed_on)
    sent = traffic(config, traced, ranks)
    return from_timings(timings, config, ranks, timed_on=timed_on, sent=sent, bandwidth=bandwidth)


def ranks_to_time(device: Device, ranks: int) -> int:
    """How many of a number of ranks this machine can be: as many as it has GPUs, or all of them where it has none.

    On processors the ranks share cores, caches and memory, so that one alone would say little about several.
    """
    return min(ranks, torch.cuda.device_count()) if device_kind(device) == "cuda" else ranks

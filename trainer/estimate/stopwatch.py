"""Time real training steps of a configuration on this machine, with fewer blocks than it has.

The training method itself (`autoencoder.py`) is stepped on random clips under its DeepSpeed engines: loss networks,
discriminator, update and moving average included. Only the dataset is left out, and the weights do not change, because
the learning rate is 0. Each rank is a process of its own, as in a training, with the same share of the cores:

    RANK=r WORLD_SIZE=L ... python -m trainer.estimate.stopwatch DIRECTORY       # started by `time_steps`
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from data_pipeline.read.loader import Batch, Position
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.config.loader import load_config, to_yaml
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.device import device_kind, own_device
from trainer.estimate.speed import Timing
from trainer.perceptual import untrained_perceptual

STRETCHES = 7  # of which the median counts
STRETCH_SECONDS = 0.5  # steps are timed in stretches at least this long, so that a GPU's queue runs full
MAX_SKIPPED = 40  # steps that fp16 may skip until it has found its loss scale


class StopwatchError(RuntimeError):
    """Steps that could not be timed; the message ends with what a rank said last."""


@dataclass(frozen=True)
class TimingPlan:
    """What to time: steps of `rounds` micro-batches at every depth; `update`: the generator's update on its own too."""

    micro_batch: int
    rounds: int
    depths: list[int]
    update: bool
    stretches: int = STRETCHES


def time_steps(config: TrainConfig, plan: TimingPlan, ranks: int) -> list[Timing]:
    """Start ranks on this machine, let them time the steps, and wait for them.

    Raises:
        ValueError: what this device cannot do.
        StopwatchError: a rank failed, for want of memory for instance.
    """
    config.check_device(device_kind(config.device))
    with TemporaryDirectory(prefix="vidtwin-stopwatch-") as name:
        directory = Path(name)
        (directory / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        (directory / "plan.json").write_text(json.dumps(asdict(plan)))
        port = str(distributed.free_port())
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(ranks):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks)}
                environment = os.environ | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                with (directory / f"rank{rank}.log").open("w") as log:
                    command = [sys.executable, "-m", "trainer.estimate.stopwatch", name]
                    processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
            failed = _first_failure(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed is not None:
            log_end = (directory / f"rank{failed}.log").read_text().strip()[-2000:]
            raise StopwatchError(f"steps could not be timed; rank {failed} said last:\n{log_end}")
        return [Timing(**row) for row in json.loads((directory / "timings.json").read_text())]


def _first_failure(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have ended well, or one has not: its number. The others would wait for it."""
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)


class Steps(Autoencoder):
    """The training method at one depth, ready to be stepped in either phase.

    Args:
        config: the training.
        ranks: those that time together.
        depth: transformer blocks in each half, in place of the configured ones.
        micro_batch, rounds: clips in a micro-batch, and micro-batches in a step.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, depth: int, micro_batch: int, rounds: int) -> None:
        config = copy.deepcopy(config)
        config.init_from = ""
        config.model.depth, config.micro_batch, config.accumulation = depth, micro_batch, rounds
        config.data.global_batch = ranks.world_size * micro_batch * rounds
        for optimizer in (config.optim.generator, config.optim.discriminator):
            optimizer.lr = optimizer.lr_start = optimizer.lr_min = 0.0
        super().__init__(config, ranks, make_perceptual=untrained_perceptual)
        self.depth = depth
        self.adversarial_step = config.gan.start + config.gan.warmup + config.gan.ramp if config.gan.weight > 0 else 0
        clips = micro_batch * rounds
        size = config.data.image_size
        video = torch.randint(0, 256, (clips, 3, config.data.frames, size, size), dtype=torch.uint8)
        names = [""] * clips
        self.batch = Batch(
            video=video.pin_memory() if ranks.device.type == "cuda" else video,
            captions=names,
            labels=names,
            keys=names,
            indices=torch.arange(clips),
            position=Position(),
        )

    @property
    def phases(self) -> list[int]:
        """Generator steps to time at: one with the adversarial term and, where that begins later, the first one."""
        return (
            [self.adversarial_step, 0] if self.adversarial_step and self.config.gan.start else [self.adversarial_step]
        )

    def warm_up(self) -> float:
        """Step in every phase until a step is applied that was not the first one; seconds of the fastest step."""
        seconds = []
        for phase in self.phases:
            for number in range(MAX_SKIPPED + 2):
                seconds.append(self.stretch(phase, 1))
                if number and not float(self.step(self.batch, phase)["skipped"]):
                    break
            else:
                raise ValueError(f"{MAX_SKIPPED} steps in a row were skipped for non-finite gradients")
        return min(seconds)

    def stretch(self, phase: int, steps: int) -> float:
        """Seconds a step, over a number of steps of a phase, on the slowest rank."""
        self.ranks.barrier()
        begin = self._now()
        for _ in range(steps):
            self.step(self.batch, phase)
        return max(self.ranks.gather((self._now() - begin) / steps))

    def update_seconds(self) -> float:
        """Seconds of the generator's update in one step: those of the last of the micro-batches' `Engine.step`."""
        engine, seconds = self.generator, [0.0]
        whole = engine.step

        def timed(lr: float) -> None:
            begin = self._now()
            whole(lr)
            seconds[0] = self._now() - begin

        engine.step = timed  # type: ignore[method-assign]
        try:
            self.step(self.batch, self.adversarial_step)
        finally:
            del engine.step
        return seconds[0]

    def _now(self) -> float:
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize(self.ranks.device)
        return time.perf_counter()


def take_timings(config: TrainConfig, plan: TimingPlan, ranks: Ranks) -> list[Timing]:
    """Time a plan; every rank calls it. All depths in turns, so that they see the same machine."""
    cases = [Steps(config, ranks, depth, plan.micro_batch, plan.rounds) for depth in plan.depths]
    lengths = [max(1, math.ceil(STRETCH_SECONDS / ranks.broadcast(case.warm_up()))) for case in cases]
    seconds: dict[tuple[int, int], list[float]] = {}
    updates: dict[int, list[float]] = {}
    for _ in range(plan.stretches):
        for place, (case, length) in enumerate(zip(cases, lengths, strict=True)):
            for phase in case.phases:
                seconds.setdefault((place, phase), []).append(case.stretch(phase, length))
            if plan.update:
                updates.setdefault(place, []).append(case.update_seconds())
    timings = []
    for place, case in enumerate(cases):
        adversarial, *before = (median(seconds[place, phase]) for phase in case.phases)
        timings.append(
            Timing(
                depth=case.depth,
                seconds=adversarial,
                before=before[0] if before else None,
                update=median(updates[place]) if plan.update else 0.0,
            )
        )
    return timings


def main() -> None:
    """One rank of `time_steps`."""
    directory = Path(sys.argv[1])
    config = load_config(TrainConfig, [directory / "config.yaml"])
    plan = TimingPlan(**json.loads((directory / "plan.json").read_text()))
    ranks = distributed.start(config.collective_timeout, own_device(config.device))
    try:
        timings = take_timings(config, plan, ranks)
        if ranks.is_main:
            (directory / "timings.json").write_text(json.dumps([asdict(timing) for timing in timings]))
    finally:
        distributed.stop()


if __name__ == "__main__":
    main()

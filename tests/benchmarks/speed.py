"""Predicted speed against that of the training itself, which is deeper than anything that was timed for the prediction.

    python -m tests.benchmarks.speed [CASE ...] [--turns 2]

Each case: `launch/train.py` (under `deepspeed` with two ranks) trains on real shards on one half of the cores, the
discriminator joining half-way; the median of the logged clips/s of both halves is taken, the first steps left out. On
the other half of the cores, at the same time, because a shared machine's speed can double within minutes,
`launch/estimate.py --device this` times steps of the same configuration with fewer blocks. Every
second they change places. Data, logging and launcher are in the training's figure only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.cases import tiny_config
from trainer.config.loader import to_yaml
from trainer.config.train import TrainConfig
from trainer.estimate.memory import estimate
from trainer.estimate.options import BANDWIDTH
from trainer.estimate.prediction import measured
from trainer.estimate.speed import depths_to_time

ROOT = Path(__file__).parents[2]
BAR = 0.15
SECONDS = 1.0  # between changes of place
STEPS, JOINS, FIRST = 24, 12, 3  # steps of a run, where the discriminator joins, and what is left out of each half
WORDS = (
    *("model.width=256", "model.depth=8", "model.heads=4", "model.image_size=64", "data.image_size=64"),
    *("model.patch_size=16", "model.structure.downsamplings=0", "model.dynamics.downsamplings=0"),
    *("discriminator.width=16", f"gan.start={JOINS}", "gan.warmup=0", "gan.ramp=0", f"steps={STEPS}"),
    *("telemetry.log_every=1", "telemetry.samples_every=0", "ema.decay=0.99", "zero.stage=1"),
    *(
        "optim.generator.warmup=1",
        "optim.discriminator.warmup=1",
        "data.workers=1",
        "data.lanes=2",
        "data.global_batch=2",
    ),
)


@dataclass(frozen=True)
class Case:
    """A training: its ranks and settings."""

    ranks: int
    words: tuple[str, ...] = ()


FULL = "activation_checkpointing.mode=full"
CASES = {
    "one": Case(1),
    "one-accumulating": Case(1, (FULL, "accumulation=4", "data.global_batch=4", "model.depth=6")),
    "two": Case(2),
    "two-zero3": Case(2, (FULL, "zero.stage=3")),
}


def predicted(config: TrainConfig, ranks: int) -> list[float]:
    """clips/s before the discriminator and with it."""
    found = measured(config, estimate(config, ranks, modes=False).trace, ranks, timed_on=ranks, bandwidth=BANDWIDTH)
    assert found.before is not None
    return [found.clips / found.before, found.clips_per_second]


def start(config: TrainConfig, ranks: int) -> subprocess.Popen[bytes]:
    """The training, by the command that a user would give."""
    output = Path(config.output)
    file = output.with_suffix(".yaml")
    file.write_text(to_yaml(config))
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", "29633"]
    command = [*([sys.executable] if ranks == 1 else launcher), "launch/train.py", "--config", str(file)]
    with output.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def trained(config: TrainConfig, process: subprocess.Popen[bytes]) -> list[float]:
    """clips/s before the discriminator and with it, by the training's own metrics.jsonl."""
    assert process.wait() == 0, Path(config.output).with_suffix(".log").read_text()[-3000:]
    rows = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    speeds = {row["step"]: row["clips_per_s"] for row in rows if "event" not in row}
    halves = (range(FIRST + 1, JOINS + 1), range(JOINS + FIRST + 1, STEPS + 1))
    return [median(speeds[step] for step in half) for half in halves]


@contextmanager
def changing_places(training: int) -> Iterator[None]:
    """Keep a process and its children on one half of the cores, all others of this one on the other, in turns."""
    cores = sorted(os.sched_getaffinity(0))
    halves = [set(cores[: len(cores) // 2]), set(cores[len(cores) // 2 :])]
    done = threading.Event()

    def change() -> None:
        while not done.wait(SECONDS):
            halves.reverse()
            theirs = {training, *descendants(training)}
            for process in {os.getpid(), *descendants(os.getpid())}:
                place(process, halves[process in theirs])

    os.sched_setaffinity(0, halves[0])  # what starts inherits it
    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        place(os.getpid(), set(cores))


def descendants(process: int) -> set[int]:
    """Its children, theirs, and so on."""
    found: set[int] = set()
    with suppress(OSError):  # it may end at any time
        for file in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, file.read_text().split()):
                found |= {child} | descendants(child)
    return found


def place(process: int, cores: set[int]) -> None:
    """Let all threads of a process run on these cores only."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            os.sched_setaffinity(int(thread), cores)


def turns(case: Case, count: int) -> Iterator[tuple[list[float], list[float]]]:
    """Predicted and trained speeds."""
    with tempfile.TemporaryDirectory() as name:
        clips = make_clips(24, frames=(9, 12), size=(64, 64))
        data = write_dataset(Path(name) / "data", split_into_shards(clips, [8]), short_side=64)
        for turn in range(count):
            config = tiny_config(f"{name}/run{turn}", *WORDS, *case.words, f"data.shards={data}")
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, cores[: len(cores) // 2])  # ranks divide the cores that they find when they start
            process = start(config, case.ranks)
            os.sched_setaffinity(0, cores)
            try:
                with changing_places(process.pid):
                    ours = predicted(config, case.ranks)
                    real = trained(config, process)
                yield ours, real
            finally:
                process.terminate()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[], metavar="CASE", help=f"of {', '.join(CASES)} (all)")
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("needs two cores: one for the training, one for the prediction")
    print(f"{'case':<18}{'timed':>8}{'depth':>7}{'':>18}{'predicted':>12}{'trained':>10}{'ratio':>8}   (bar {BAR:.0%})")
    for name in arguments.cases or CASES:
        case = CASES[name]
        config = tiny_config("unused", *WORDS, *case.words)
        depths = "+".join(str(depth) for depth in depths_to_time(config))
        for both in turns(case, arguments.turns):
            for phase, ours, real in zip(("before gan.start", "discriminator on"), *both, strict=True):
                mark = "" if abs(ours / real - 1) <= BAR else "   beyond the bar"
                line = f"{name:<18}{depths:>8}{config.model.depth:>7}{phase:>18}{ours:>12.2f}{real:>10.2f}"
                print(f"{line}{ours / real:>8.3f}{mark}", flush=True)


if __name__ == "__main__":
    main()

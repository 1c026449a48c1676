"""Predicted speed against that of the training itself, which is deeper than anything that was timed for the prediction.

    python -m tests.benchmarks.speed [CASE ...] [--turns 2]

Each case: `launch/estimate.py --device this` times steps of fewer blocks (and micro-batches) than configured; then
the same configuration is trained by `launch/train.py` (under `deepspeed` with two ranks) on real shards, the
discriminator joining half-way, and the median of the logged clips/s of both halves is taken, the first steps left out.
Data, logging and launcher are in the second figure only. Run it on a machine with nothing else to do.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.data_pipeline.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.cases import tiny_config
from trainer.config import TrainConfig
from trainer.config_loader import to_yaml
from trainer.estimate import estimate
from trainer.speed import depths_to_time
from trainer.stopwatch import measured

ROOT = Path(__file__).parents[2]
BAR = 0.15
STEPS, JOINS, FIRST = 24, 12, 3  # steps of a run, where the discriminator joins, and what is left out of each half
WORDS = (
    *("model.width=256", "model.depth=8", "model.heads=4", "model.image_size=64", "data.image_size=64"),
    *("model.patch_size=16", "model.structure.downsamplings=0", "model.dynamics.downsamplings=0"),
    *("discriminator.width=16", f"gan.start={JOINS}", "gan.warmup=0", "gan.ramp=0", f"steps={STEPS}"),
    *("telemetry.log_every=1", "telemetry.samples_every=0", "ema.decay=0.99", "zero.stage=1"),
    *("optim.generator.warmup=1", "optim.discriminator.warmup=1", "data.workers=1", "data.lanes=2"),
)


@dataclass(frozen=True)
class Case:
    """A training: its ranks, those timed for the prediction, threads of each rank (0 = its share), and settings."""

    ranks: int
    timed_on: int
    words: tuple[str, ...]
    threads: int = 0
    bandwidth: float = 1.0


FULL = "activation_checkpointing.mode=full"
CASES = {
    "one": Case(1, 1, ()),
    "two": Case(2, 2, ()),
    "two-full-zero3": Case(2, 2, (FULL, "zero.stage=3")),
    "one-accumulating": Case(1, 1, ("accumulation=4", "data.global_batch=8", "model.depth=6")),
    # As one rents a GPU to predict two of them: one rank with a core of its own stands for two with a core each.
    "two-from-one": Case(2, 1, ("data.global_batch=4",), threads=1),
}


def predicted(config: TrainConfig, case: Case) -> list[float]:
    """clips/s before the discriminator and with it."""
    trace = estimate(config, case.ranks, modes=False).trace
    found = measured(config, trace, case.ranks, timed_on=case.timed_on, bandwidth=case.bandwidth)
    assert found.before is not None
    return [found.clips / found.before, found.clips_per_second]


def trained(config: TrainConfig, case: Case) -> list[float]:
    """The same, by the training's own metrics.jsonl."""
    output = Path(config.output)
    file = output.with_suffix(".yaml")
    file.write_text(to_yaml(config))
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(case.ranks), "--master_port", "29633"]
    start = [sys.executable] if case.ranks == 1 else command
    done = subprocess.run([*start, "launch/train.py", "--config", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    speeds = {row["step"]: row["clips_per_s"] for row in rows}
    halves = (range(FIRST + 1, JOINS + 1), range(JOINS + FIRST + 1, STEPS + 1))
    return [median(speeds[step] for step in half) for half in halves]


def turns(case: Case, count: int) -> Iterator[tuple[list[float], list[float]]]:
    """Predicted and trained speeds, one after the other so that both see the same machine."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.pop("OMP_NUM_THREADS", None)
    if case.threads:
        os.environ["OMP_NUM_THREADS"] = str(case.threads)
    try:
        with tempfile.TemporaryDirectory() as name:
            clips = make_clips(24, frames=(9, 12), size=(64, 64))
            data = write_dataset(Path(name) / "data", split_into_shards(clips, [8]), short_side=64)
            for turn in range(count):
                config = tiny_config(f"{name}/run{turn}", *WORDS, *case.words, f"data.shards={data}")
                yield predicted(config, case), trained(config, case)
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[], metavar="CASE", help=f"of {', '.join(CASES)} (all)")
    parser.add_argument("--turns", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{'case':<18}{'timed':>8}{'depth':>7}{'':>18}{'predicted':>12}{'trained':>10}{'ratio':>8}   (bar {BAR:.0%})")
    for name in arguments.cases or CASES:
        case = CASES[name]
        for both in turns(case, arguments.turns):
            config = tiny_config("unused", *WORDS, *case.words)
            depths = "+".join(str(depth) for depth in depths_to_time(config))
            for phase, ours, real in zip(("before gan.start", "discriminator on"), *both, strict=True):
                mark = "" if abs(ours / real - 1) <= BAR else "   beyond the bar"
                line = f"{name:<18}{depths:>8}{config.model.depth:>7}{phase:>18}{ours:>12.2f}{real:>10.2f}"
                print(f"{line}{ours / real:>8.3f}{mark}", flush=True)


if __name__ == "__main__":
    main()

"""What recomputing activations saves and costs: peak memory and time of a generator step, by mode.

Width 768, depth 2+2, one clip of 16 x 224 x 224, fp32, 2 threads, no loss networks. Memory is PyTorch's own account of
allocations: the most at once during forward and backward, beyond weights and what stays of a step (gradients). Time is
the fastest of a few steps, in processor seconds, because a busy machine adds to the others. The last column is what
trainer/estimate/trace.py estimates for the same, from shapes.

    python -m tests.benchmarks.memory [--rounds 3]
"""

import argparse
import time
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from model.config import VidTwinConfig
from model.vidtwin import VidTwin
from trainer.estimate.meter import Meter

THREADS = 2
CONFIG = VidTwinConfig(depth=2)
MODES = (("none", 1), ("selective", 1), ("every", 2), ("full", 1))


def _step(model: VidTwin, video: torch.Tensor) -> None:
    output = model(video)
    (output.recon.square().sum() + output.kl).backward()


def _peak(model: VidTwin, video: torch.Tensor) -> int:
    """Bytes allocated at most at once in a step, gradients included."""
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        _step(model, video)
    events: Any = record.profiler.kineto_results.events()  # type: ignore[union-attr]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def _estimated(mode: str, every: int) -> int:
    with FakeTensorMode():
        model = VidTwin(CONFIG)
        model.set_activation_checkpointing(mode, every)  # type: ignore[arg-type]
        video = torch.zeros(1, 3, CONFIG.frames, CONFIG.image_size, CONFIG.image_size)
        with Meter() as meter:
            meter.follow(model)
            _step(model, video)
    return meter.peak_with_gradients


def run(rounds: int = 3) -> list[dict[str, Any]]:
    """One row for each mode."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    rows = []
    try:
        torch.manual_seed(0)
        model = VidTwin(CONFIG)
        video = torch.rand(1, 3, CONFIG.frames, CONFIG.image_size, CONFIG.image_size) * 2 - 1
        for mode, every in MODES:
            model.set_activation_checkpointing(mode, every)  # type: ignore[arg-type]
            peak = _peak(model, video)
            seconds = []
            for _ in range(rounds):
                model.zero_grad()
                begin = time.process_time()
                _step(model, video)
                seconds.append(time.process_time() - begin)
            name = f"every {every}" if mode == "every" else mode
            rows.append({"mode": name, "peak": peak, "seconds": min(seconds), "estimated": _estimated(mode, every)})
    finally:
        torch.set_num_threads(before)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rows = run(parser.parse_args().rounds)
    print(f"{'mode':<12}{'peak, GB':>10}{'of none':>10}{'step, s':>10}{'of none':>10}{'estimated':>12}")
    for row in rows:
        memory, seconds = row["peak"] / rows[0]["peak"], row["seconds"] / rows[0]["seconds"]
        print(
            f"{row['mode']:<12}{row['peak'] / 1e9:>10.3f}{memory:>10.2f}{row['seconds']:>10.2f}{seconds:>10.2f}"
            f"{row['estimated'] / 1e9:>12.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""The large preset at its full depth: memory of real steps on one rank, against launch/estimate.py.

    python -m tests.benchmarks.large [update|frozen]

All of it takes 16 bytes a parameter, 20 GB, before the first activation. So two parts that a smaller machine can hold:
`update`: the whole network forwards and backwards, the update left out, by which Adam's moments, 8 bytes a parameter,
never come to be; `frozen`: whole steps in which the decoder half learns. fp32, ZeRO 0, one clip, discriminator on.
15 GB and some minutes each. Memory is counted as in tests/trainer/measured_memory.py.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from tests.trainer.cases import as_batch
from tests.trainer.measured_memory import living_bytes, status_bytes
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.estimate.memory import memory
from trainer.estimate.trace import trace

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = (
    *("output=unused", "data.shards=unused", "loss.perceptual=none", "precision=fp32", "zero.stage=0"),
    *("data.global_batch=1", "gan.start=0", "gan.warmup=0", "gan.ramp=0"),
)
SMALL = (
    "model.image_size=64",
    "data.image_size=64",
    "model.structure.downsamplings=0",
    "model.dynamics.downsamplings=0",
)
PARTS = {
    "update": ("model.image_size=112", "data.image_size=112"),
    "frozen": (*SMALL, "freeze=encoder", "init_from=unused"),
}


def measure(part: str) -> tuple[float, float]:
    """Bytes estimated, and measured at the peak of a step."""
    files = [CONFIGS / "train" / "paper.yaml", CONFIGS / "model" / "large.yaml"]
    config = load_config(TrainConfig, files, [*WORDS, *PARTS[part]])
    found = memory(config, trace(config, 1), 1, 0, 1)
    estimated = found.total + found.host  # here the device is the host
    config.init_from = ""
    method = Autoencoder(config, distributed.start(10))
    size = config.data.image_size
    batch = as_batch(torch.zeros(1, 3, config.data.frames, size, size, dtype=torch.uint8))
    if part == "update":
        estimated -= found.optimizer
        method.generator.step = lambda lr: None  # type: ignore[method-assign]
        method.generator.outcome = lambda device: (torch.zeros(()), torch.zeros(()))  # type: ignore[method-assign]
    else:
        method.step(batch, 0)  # Adam's moments come to be
    kept = living_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the highest water is now
    start = status_bytes("VmRSS")
    method.step(batch, 1)
    peak = kept + status_bytes("VmHWM") - start
    print(f"{part}: {kept / 1e9:.2f} GB of tensors before the step, resident {start / 1e9:.2f} GB", flush=True)
    distributed.stop()
    return estimated, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args().part
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # a tensor's pages are to come and go with it
        command = [sys.executable, "-m", "tests.benchmarks.large", part]
        os.execve(sys.executable, command, os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "DS_ACCELERATOR": "cpu"})
    estimated, peak = measure(part)
    print(f"{part}: estimated {estimated / 1e9:.2f} GB, measured {peak / 1e9:.2f} GB, ratio {estimated / peak:.3f}")


if __name__ == "__main__":
    main()

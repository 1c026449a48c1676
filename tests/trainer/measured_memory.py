"""One of two gloo ranks that measures what training steps allocate, stage by stage, for test_estimate.py.

    RANK=r WORLD_SIZE=2 MALLOC_MMAP_THRESHOLD_=65536 ... python -m tests.trainer.measured_memory DIRECTORY [CASE ...]

Between steps the memory of all living tensors is added up; what a step takes on top is the growth of the process, as
the kernel counts its highest water (with the threshold above, a tensor's pages come and go with it).
"""

import gc
import json
import sys
from pathlib import Path

import torch

from tests.trainer.cases import as_batch, tiny_config
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.config import TrainConfig
from trainer.distributed import Ranks

# About 5 million parameters, and activations that weigh as much as they and more.
WORDS = (
    *("model.width=256", "model.depth=2", "model.heads=4", "model.image_size=64", "data.image_size=64"),
    *("discriminator.width=16", "gan.start=0", "gan.warmup=0", "gan.ramp=0", "zero.bucket=1000000", "steps=50"),
)
BF16 = ("precision=bf16", "data.global_batch=2", "model.depth=1", "gan.weight=0")  # processors are slow at it
CASES = {
    "stage 0": ("zero.stage=0",),
    "stage 1": ("zero.stage=1",),
    "stage 2": ("zero.stage=2",),
    "stage 3": ("zero.stage=3",),
    "stage 0 full": ("zero.stage=0", "activation_checkpointing.mode=full"),
    "stage 2 selective": ("zero.stage=2", "activation_checkpointing.mode=selective", "accumulation=2"),
    "stage 1 frozen": ("zero.stage=1", "freeze=encoder"),
    "stage 1 average": ("zero.stage=1", "ema.decay=0.9", "gan.weight=0"),
    **{f"stage {stage} bf16": (f"zero.stage={stage}", *BF16) for stage in (0, 1, 3)},
}


def config_of(case: str, directory: Path) -> TrainConfig:
    """The training that a case measures."""
    words = [*WORDS, *CASES[case]]
    if "freeze=encoder" in words:
        words.append(f"init_from={directory / 'start'}")
    return tiny_config(str(directory), *words)


def measure(config: TrainConfig, ranks: Ranks) -> dict[str, int]:
    """Bytes on this rank between steps, and the most during the third one."""
    size, clips = config.model.image_size, config.data.global_batch // ranks.world_size
    batch = as_batch(torch.zeros(clips, 3, config.model.frames, size, size, dtype=torch.uint8))
    before = _tensors()
    method = Autoencoder(config, ranks)
    for step in range(2):
        method.step(batch, step)
    kept = _tensors() - before
    Path("/proc/self/clear_refs").write_text("5")  # the highest water is now
    start = _status("VmRSS")
    method.step(batch, 2)
    return {"kept": kept, "peak": kept + _status("VmHWM") - start}


def _tensors() -> int:
    """Bytes of all tensors that Python can see."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    storages = {(s := tensor.untyped_storage()).data_ptr(): s.nbytes() for tensor in tensors}
    return sum(storages.values())


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def main() -> None:
    directory = Path(sys.argv[1])
    ranks = distributed.start(3)
    Autoencoder(tiny_config(str(directory), *WORDS), ranks).export(directory / "start")
    ranks.barrier()
    wanted = sys.argv[2:] or list(CASES)
    found = {}
    for case in wanted:
        found[case] = measure(config_of(case, directory), ranks)
        if ranks.is_main:
            (directory / "measured.json").write_text(json.dumps(found, indent=1))
    distributed.stop()


if __name__ == "__main__":
    main()

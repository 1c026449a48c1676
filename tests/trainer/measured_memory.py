"""One of two gloo ranks that measures what training steps allocate and send, stage by stage, for test_memory.py.

    RANK=r WORLD_SIZE=2 MALLOC_MMAP_THRESHOLD_=65536 ... python -m tests.trainer.measured_memory DIRECTORY [CASE ...]

Between steps the memory of all living tensors is added up; what a step takes on top is the growth of the process, as
the kernel counts its highest water (with the threshold above, a tensor's pages come and go with it).
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.dit_config import LatentSpace
from tests.trainer.cases import as_batch, tiny_config
from tests.trainer.diffusion import cases
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.config.diffusion import DiffusionConfig
from trainer.config.train import TrainConfig
from trainer.diffusion.method import LatentDiffusion
from trainer.distributed import Ranks
from trainer.estimate.trace import Trace, trace
from trainer.estimate.trace_dit import batch_of, statistics_of, trace_dit

# About 5 million parameters, and activations that weigh as much as they and more.
WORDS = (
    *("model.width=256", "model.depth=2", "model.heads=4", "model.patch_size=8", "model.image_size=64"),
    *("data.image_size=64", "model.structure.query_layers=2", "discriminator.width=16"),
    *("gan.start=0", "gan.warmup=0", "gan.ramp=0", "zero.bucket=1000000", "steps=50"),
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


# A DiT of 5 million parameters, and 560 tokens a clip.
DIT_SPACE = LatentSpace(structure_shape=(4, 8, 8, 8), dynamics_shape=(8, 8, 12), classes=("a", "b"))
DIT_WORDS = (
    *("dit.width=256", "dit.depth=4", "dit.heads=4", "dit.condition=class", "dit.structure_patch=[1,1,1]"),
    *("dit.dynamics_patch=[2,1]", "zero.bucket=1000000", "steps=50", "data.global_batch=8", "optim.dit.name=adam"),
)
DIT_CASES = {
    **{f"dit stage {stage}": (f"zero.stage={stage}", "ema.decay=0") for stage in range(4)},
    "dit stage 1 average": ("zero.stage=1",),
    "dit stage 1 full": ("zero.stage=1", "activation_checkpointing.mode=full", "data.global_batch=16"),
    "dit stage 1 selective": ("zero.stage=1", "activation_checkpointing.mode=selective"),
    "dit stage 1 offloaded": ("zero.stage=1", "zero.offload_optimizer=true"),
}


def traced(config: TrainConfig | DiffusionConfig, micro_batch: int) -> Trace:
    """What the step of a case is estimated to take."""
    return trace(config, micro_batch) if isinstance(config, TrainConfig) else trace_dit(config, micro_batch, DIT_SPACE)


def config_of(case: str, directory: Path) -> TrainConfig | DiffusionConfig:
    """The training that a case measures."""
    if case in DIT_CASES:
        return cases.tiny_config(str(directory), *DIT_WORDS, *DIT_CASES[case])
    words = [*WORDS, *CASES[case]]
    if "freeze=encoder" in words:
        words.append(f"init_from={directory / 'start'}")
    return tiny_config(str(directory), *words)


def measure(config: TrainConfig | DiffusionConfig, ranks: Ranks) -> dict[str, int]:
    """Bytes on this rank between steps, and the most during the third one."""
    clips = config.data.global_batch // ranks.world_size
    batch: Any
    if isinstance(config, TrainConfig):
        size = config.model.image_size
        batch = as_batch(torch.zeros(clips, 3, config.model.frames, size, size, dtype=torch.uint8))
    else:
        batch = batch_of(DIT_SPACE, clips)
    before = living_bytes()
    method: Any
    if isinstance(config, TrainConfig):
        method = Autoencoder(config, ranks)
    else:
        method = LatentDiffusion(config, ranks, DIT_SPACE, statistics_of(DIT_SPACE))
    for step in range(2):
        method.step(batch, step)
    kept = living_bytes() - before
    Path("/proc/self/clear_refs").write_text("5")  # the highest water is now
    start = status_bytes("VmRSS")
    method.step(batch, 2)
    peak = kept + status_bytes("VmHWM") - start
    with Sent() as sent:
        method.step(batch, 3)
    return {"kept": kept, "peak": peak, "sent": round(sent.bytes)}


class Sent(TorchDispatchMode):
    """Counts what the collectives inside it send from a rank, where they go round a ring of two."""

    # Of the first argument: what is averaged goes there and back by halves, of what was gathered this rank sent its
    # half, and what is left of a scattering is as much as was given away.
    SHARES = {"allreduce_": 1.0, "_allgather_base_": 0.5, "_reduce_scatter_base_": 1.0}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and (name := func.overloadpacket.__name__) != "barrier":
            tensors = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, torch.Tensor)]
            self.bytes += self.SHARES[name] * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return func(*args, **(kwargs or {}))


def living_bytes() -> int:
    """Bytes of all tensors that Python can see."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
    storages = {(s := tensor.untyped_storage()).data_ptr(): s.nbytes() for tensor in tensors}
    return sum(storages.values())


def status_bytes(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def main() -> None:
    directory = Path(sys.argv[1])
    ranks = distributed.start(3)
    wanted = sys.argv[2:] or [*CASES, *DIT_CASES]
    if not DIT_CASES.keys() >= set(wanted):
        Autoencoder(tiny_config(str(directory), *WORDS), ranks).export(directory / "start")
    ranks.barrier()
    found = {}
    for case in wanted:
        found[case] = measure(config_of(case, directory), ranks)
        if ranks.is_main:
            (directory / "measured.json").write_text(json.dumps(found, indent=1))
    distributed.stop()


if __name__ == "__main__":
    main()

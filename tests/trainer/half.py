"""What two_ranks.py runs in fp16, which DeepSpeed refuses on most processors; PyTorch calculates it on all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.trainer.cases import as_batch, global_batches, tiny_config
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks

HALF = (0, 1, 2, 3)
"""ZeRO stages."""


def fitting(stage: int) -> float:
    """The largest power of two as a loss scale that the gradients of these steps bear, at two ranks."""
    return 64.0 if stage == 0 else 128.0


@contextmanager
def allowed() -> Iterator[None]:
    """Inside, DeepSpeed takes this processor for one that can train in fp16."""
    from deepspeed.accelerator import get_accelerator

    with mock.patch.object(get_accelerator(), "is_fp16_supported", return_value=True):
        yield


def _step(method: Autoencoder, ranks: Ranks, video: Tensor, step: int) -> dict[str, float]:
    """Terms of this rank, and the loss scale they were calculated with."""
    scale = method.schedules(step)["loss_scale"]
    terms = method.step(as_batch(video.chunk(ranks.world_size)[ranks.rank]), step)
    return {name: float(value) for name, value in terms.items()} | {"loss_scale": scale}


@allowed()
def in_half(directory: Path, ranks: Ranks, stage: int) -> dict[str, Any]:
    """Six steps, the first repeated until the loss scale fits; then one with a NaN on the last rank; then set back.

    The weights are saved before the NaN, and read into an engine of the next stage, at 3 of stage 0. At last, more NaN
    where the loss scale is twice its lowest.
    """
    words = [f"zero.discriminator_stage={min(stage, 1)}", "precision=fp16"]
    method = Autoencoder(tiny_config(str(directory), f"zero.stage={stage}", *words), ranks)
    batches = global_batches()
    rows = [_step(method, ranks, batches[0], 0)]  # the learning rate begins at 0, so to repeat it changes nothing
    while rows[-1]["skipped"] and len(rows) < 10:
        rows.append(_step(method, ranks, batches[0], 0))
    rows += [_step(method, ranks, video, step) for step, video in enumerate(batches) if step > 0]
    folder = directory / f"half-{stage}"
    if ranks.is_main:
        folder.mkdir()
    ranks.barrier()
    method.save(folder)
    before = method.generator.full_state()
    broken = batches[0].clone()
    broken[-1, 0, 0, 0, 0] = torch.nan
    twice = [_step(method, ranks, broken, 6) for _ in range(2)]
    after, last = method.generator.full_state(), method.generator.loss_scale
    other = Autoencoder(tiny_config(str(directory), f"zero.stage={(stage + 1) % 4}", "precision=fp16"), ranks)
    other.load(folder)
    read = other.generator.full_state()
    again = _step(other, ranks, batches[0], 6)
    method.generator.scaler().cur_scale = 2.0**-15
    low = [_step(method, ranks, broken, 6) for _ in range(3)]
    lowest = [(row["skipped"], row["loss_scale"]) for row in low]
    states = {"before": before, "after": after, "read": read}
    return {"rows": rows, "broken": twice, "last": last, "again": again, "lowest": lowest} | states

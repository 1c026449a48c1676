"""What two_ranks.py runs for the monitoring: validation in the middle, going back on live engines, named gradients."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainer.cases import as_batch, global_batches, tiny_config
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks
from trainer.telemetry.nonfinite import SkippedSteps
from trainer.telemetry.running_means import RunningMeans

EVALUATED = {0: "stage 0 accumulation 1", 2: "bf16 stage 2", 3: "stage 3 accumulation 1"}
"""ZeRO stage -> the undisturbed training of two_ranks.py that is repeated here."""
SUSPECTS = (0, 1, 3)
BROKEN = "vidtwin.patch_in.bias"


def _batch(video: Tensor, ranks: Ranks) -> Any:
    return as_batch(video.chunk(ranks.world_size)[ranks.rank])


def _steps(method: Autoencoder, ranks: Ranks, first: int, end: int) -> list[dict[str, float]]:
    """Terms of the steps, averaged over ranks."""
    rows = []
    for step in range(first, end):
        terms = method.step(_batch(global_batches()[step], ranks), step)
        table = torch.stack([terms[name] for name in sorted(terms)])
        dist.all_reduce(table)
        rows.append(dict(zip(sorted(terms), (table / ranks.world_size).tolist(), strict=True)))
    return rows


def evaluated(directory: Path, ranks: Ranks, stage: int) -> dict[str, Any]:
    """A training with validation passes after three of its steps, later set back to there and gone on with."""
    settings = [f"zero.stage={stage}", f"precision={'bf16' if stage == 2 else 'fp32'}", "ema.decay=0.75"]
    settings.append(f"zero.discriminator_stage={int(stage == 3)}")
    method = Autoencoder(tiny_config(str(directory), *settings), ranks)
    rows = _steps(method, ranks, 0, 3)
    video = (global_batches()[5] + 1) / 2
    assert method.ema is not None
    with method.evaluating(ema=False) as rebuild:
        weights = rebuild(video[ranks.rank :])  # ranks may have unequal shares
    with method.evaluating(ema=True) as rebuild:
        average = rebuild(video)
    with method.ema.applied():
        averages = method.generator.full_state()
    assert len(weights) == len(video) - ranks.rank
    result = {"rebuilt": average, "average": averages, "video": video}
    with method.evaluating(ema=False) as rebuild:
        result |= {"rebuilt plain": rebuild(video), "plain": method.generator.full_state()}
    folder = directory / f"watched-{stage}"
    if ranks.is_main:
        folder.mkdir()
    ranks.barrier()
    method.save(folder)
    rows += _steps(method, ranks, 3, 5)
    method.load(folder)
    return result | {"rows": rows, "again": _steps(method, ranks, 3, 5)}


def suspects(directory: Path, ranks: Ranks, stage: int) -> dict[str, Any]:
    """Five steps; in the second and third, one weight's gradient is NaN on the last rank; in the fourth, a pixel is."""
    settings = [f"zero.stage={stage}", f"zero.discriminator_stage={min(stage, 1)}", "gan.start=0"]
    method = Autoencoder(tiny_config(str(directory), *settings), ranks)
    broken = {"now": False}
    if not ranks.is_main:
        weight = method.generator.module.get_parameter(BROKEN)
        weight.register_hook(lambda grad: grad * torch.nan if broken["now"] else grad)
    file, means = directory / f"nonfinite-{stage}.jsonl", RunningMeans(ranks.device)
    known = SkippedSteps(file, ranks)
    for step in range(5):
        video = global_batches()[step].clone()
        if step == 3:
            video[-1, 0, 0, 0, 0] = torch.nan
        broken["now"] = step in (1, 2)
        batch = _batch(video, ranks)
        batch.keys = [f"step {step + 1} rank {ranks.rank} clip {place}" for place in range(len(batch.keys))]
        terms = method.step(batch, step)
        known.add(step + 1, batch.keys, terms["skipped"], means.add(terms), method.gradients())
    rows = known.explain()
    return {"rows": rows, "file": file.read_text() if ranks.is_main else "", "last": terms["total_loss"]}

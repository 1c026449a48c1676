"""What a rank says when its GPU has run out of memory: what lay there, what the estimate says, which setting to change.

    OUTPUT/oom/rank-00000.pickle    the allocator's blocks, for https://pytorch.org/memory_viz
    OUTPUT/oom/rank-00000.txt       what the console showed

Only this rank knows of the error and the other ranks wait for it, so nothing here waits for another rank.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainer.config.learning import Recompute
from trainer.config.networks import NetworkRunConfig
from trainer.estimate.memory import Estimate, estimate, memory, table
from trainer.estimate.trace import Tracer, trace

UNCOUNTED, HOLES = 2_000_000_000, 1.1
"""Bytes of a GPU that no estimate counts (its context, libraries), and the factor for the holes between allocations."""


@dataclass(frozen=True)
class Remedy:
    """Settings to change, and the estimate for a rank with them."""

    settings: str
    bytes: int


def explain_if_out_of_memory(error: BaseException, config: NetworkRunConfig, tracer: Tracer = trace) -> None:
    """`explain` on standard error, if the error says that this rank's GPU has no memory left; otherwise nothing."""
    if not isinstance(error, torch.OutOfMemoryError):
        return
    capacity = torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else None

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    explain(config, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), capacity, say, tracer)


def explain(
    config: NetworkRunConfig,
    rank: int,
    ranks: int,
    capacity: int | None,
    say: Callable[[str], None],
    tracer: Tracer = trace,
) -> None:
    """Write the files, and say what to do; after an error of the GPU's memory on this rank.

    Args:
        rank, ranks: this rank, and how many there are.
        capacity: bytes of the GPU; None where there is none.
        say: prints some lines. It is called as soon as each part is known, because the process may be ended meanwhile.
        tracer: traces the step of this kind of training.
    """
    folder = Path(config.output) / "oom"
    folder.mkdir(exist_ok=True)
    name = folder / f"rank-{rank:05d}"
    said: list[str] = []

    def tell(text: str) -> None:
        said.append(text)
        name.with_suffix(".txt").write_text("\n".join(said) + "\n")
        say(text)

    write_snapshot(name.with_suffix(".pickle"))
    tell(
        f"rank {rank} ran out of GPU memory. What lay there is in {name.with_suffix('.pickle')} (open it on "
        "https://pytorch.org/memory_viz). The estimate, without the GPU's context and holes between allocations:"
    )
    found = estimate(config, ranks, tracer=tracer)
    tell(table(found, config, ranks))
    tell(advice(config, found, ranks, capacity))


def write_snapshot(path: Path) -> None:
    """Write the allocator's segments and blocks of all devices, in the form that torch's viewer reads."""
    segments = torch.cuda.memory_snapshot()
    with path.open("wb") as file:
        pickle.dump({"segments": segments, "device_traces": []}, file)


def advice(config: NetworkRunConfig, found: Estimate, ranks: int, capacity: int | None) -> str:
    """Which setting to change: the cheapest one with which the estimate fits, and the others with their estimates.

    Args:
        found: the estimate of `config`.
        capacity: bytes of the GPU; None: say what saves most.
    """
    now = found.stages[config.zero.stage].total
    saving = [remedy for remedy in remedies(config, found, ranks) if remedy.bytes < now]
    if not saving:
        return (
            "no single setting of memory would save anything; use GPUs with more memory, or a smaller model, fewer "
            "frames or a smaller image"
        )
    fitting = [remedy for remedy in saving if capacity is not None and HOLES * remedy.bytes + UNCOUNTED <= capacity]
    best = fitting[0] if fitting else min(saving, key=lambda remedy: remedy.bytes)
    lines = [f"change: {best.settings} (then {best.bytes / 1e9:.3g} GB a rank, now {now / 1e9:.3g})"]
    if capacity is not None and not fitting:
        lines[0] += (
            f"; that may not be enough for {capacity / 1e9:.3g} GB: change several, or take more GPUs with zero.stage=2"
        )
    lines += [f"    or: {other.settings} ({other.bytes / 1e9:.3g} GB)" for other in saving if other is not best]
    return "\n".join(lines) + "\nthe same command with it goes on from the newest checkpoint"


def remedies(config: NetworkRunConfig, found: Estimate, ranks: int) -> Iterator[Remedy]:
    """Single changes that may save memory, the cheapest in time first; the last changes what depends on micro-batches.

    Args:
        found: the estimate of `config` with all ways of recomputation.
    """
    order = [Recompute.none, Recompute.selective, Recompute.every, Recompute.full]
    mode, stage = config.activation_checkpointing.mode, config.zero.stage
    later = order[order.index(mode) + 1 :]
    if Recompute.selective in later:
        yield Remedy("activation_checkpointing.mode=selective", found.modes[Recompute.selective].total)
    if ranks > 1 and stage < 2:
        yield Remedy("zero.stage=2", found.stages[2].total)
    for other in (Recompute.every, Recompute.full):
        if other in later:
            yield Remedy(f"activation_checkpointing.mode={other.value}", found.modes[other].total)
    if ranks > 1 and stage < 3:
        yield Remedy("zero.stage=3", found.stages[3].total)
    if not config.zero.offload_optimizer:
        at = max(stage, 1)
        zero = replace(config.zero, offload_optimizer=True, stage=at)
        offloaded = memory(replace(config, zero=zero), found.trace, ranks, at, found.accumulation)
        yield Remedy(f"zero.stage={at} zero.offload_optimizer=true", offloaded.total)
    if found.micro_batch > 1:
        share = found.micro_batch * found.accumulation
        smaller = max(part for part in range(1, found.micro_batch) if share % part == 0)
        traced = found.tracer(config, smaller)
        total = memory(config, traced, ranks, stage, share // smaller).total
        yield Remedy(f"micro_batch={smaller} accumulation={share // smaller}", total)

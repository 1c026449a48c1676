"""One of two gloo ranks that runs many small trainings of a DiT in one process group.

    RANK=r WORLD_SIZE=2 ... python -m tests.trainer.diffusion.two_ranks DIRECTORY [--quick]

--quick leaves out what only the slow tests look at. Rank 0 leaves its findings in DIRECTORY/results.pt;
test_two_ranks.py holds them against the reference.
"""

import gc
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainer.diffusion.cases import (
    EMPTY_CAPTION,
    SPACE,
    STATISTICS,
    STEPS,
    Latent,
    TinyLatents,
    latents,
    tiny_config,
)
from tests.trainer.diffusion.reference import Recipe
from trainer import distributed
from trainer.config.diffusion import DiffusionConfig
from trainer.diffusion.method import LatentDiffusion
from trainer.distributed import Ranks

TIMEOUT_MINUTES = 1.0
HALF = STEPS // 2


@dataclass(frozen=True)
class Scenario:
    """A training.

    Attributes:
        recipe: what is trained.
        words: settings that may not change the result.
        quick: `make test` runs it.
    """

    recipe: Recipe
    words: tuple[str, ...] = ()
    quick: bool = True

    @property
    def name(self) -> str:
        return " ".join([*self.recipe.words(), *self.words])


CLASS, TEXT = Recipe(condition="class", gamma=5.0), Recipe(condition="text", flow=True, qk_norm=True)
PLAIN = Recipe(structure_share=0.25, zero_snr=True)
SCENARIOS = [
    Scenario(CLASS, ("zero.stage=0",)),
    Scenario(CLASS, ("zero.stage=1", "accumulation=2"), quick=False),
    Scenario(CLASS, ("zero.stage=2", "accumulation=2"), quick=False),
    Scenario(CLASS, ("zero.stage=3", "accumulation=2"), quick=False),
    Scenario(CLASS, ("zero.stage=1", "activation_checkpointing.mode=full"), quick=False),
    Scenario(TEXT, ("zero.stage=1", "accumulation=2")),
    Scenario(TEXT, ("zero.stage=2",), quick=False),
    Scenario(TEXT, ("zero.stage=3", "activation_checkpointing.mode=selective")),
    Scenario(TEXT, ("zero.stage=0", "accumulation=2"), quick=False),
    Scenario(PLAIN, ("zero.stage=0", "accumulation=2"), quick=False),
    Scenario(PLAIN, ("zero.stage=1",), quick=False),
    Scenario(PLAIN, ("zero.stage=2",)),
    Scenario(PLAIN, ("zero.stage=3",), quick=False),
]
BF16 = [(0, False), (1, False), (2, False), (3, True)]
"""(ZeRO stage, quick)."""


@dataclass
class Trained:
    """A method while it trains, with the means of its terms over the ranks."""

    method: LatentDiffusion
    ranks: Ranks
    rows: list[dict[str, float]] = field(default_factory=list)

    def steps(self, first: int, last: int, broken: int | None = None) -> None:
        """Steps `first` to `last` - 1; rank 1 has a NaN in its batch of step `broken`."""
        for step in range(first, last):
            batch = latents(step).share(self.ranks.rank, self.ranks.world_size)
            if step == broken and self.ranks.rank == 1:
                batch.dynamics[0, 0, 0, 0] = torch.nan
            terms = self.method.step(batch, step)
            table = torch.stack([terms[name].double() for name in sorted(terms)])
            dist.all_reduce(table)
            self.rows.append(dict(zip(sorted(terms), (table / self.ranks.world_size).tolist(), strict=True)))

    def weights(self) -> dict[str, Tensor]:
        """Full fp32 weights and statistics."""
        return self.method.engine.full_state()

    def average(self) -> dict[str, Tensor]:
        """Their moving average."""
        assert self.method.ema is not None
        with self.method.ema.applied():
            return self.weights()


def method_of(config: DiffusionConfig, ranks: Ranks, *, fresh: bool = True) -> LatentDiffusion:
    """The method on the tiny latents."""
    held_out: list[Latent] = TinyLatents(config, ranks).held_out
    return LatentDiffusion(config, ranks, SPACE, STATISTICS, fresh, empty_caption=EMPTY_CAPTION, held_out=held_out)


def training(directory: Path, ranks: Ranks, name: str, words: list[str]) -> dict[str, Any]:
    """A training that is saved half-way, the second half again from what was saved, and that read at another stage."""
    config = tiny_config(str(directory), *words)
    whole = Trained(method_of(config, ranks), ranks)
    initial = whole.weights()
    whole.steps(0, HALF)
    folder = directory / name.replace(" ", "-")
    if ranks.is_main:
        folder.mkdir()
    ranks.barrier()
    whole.method.save(folder)
    saved = {"weights": whole.weights(), "average": whole.average()}
    other = config.zero.stage + 1 if config.zero.stage < 3 else 0
    moved = Trained(method_of(replace(config, zero=replace(config.zero, stage=other)), ranks, fresh=False), ranks)
    moved.method.load(folder)
    whole.steps(HALF, STEPS)
    again = Trained(method_of(config, ranks, fresh=False), ranks)
    again.method.load(folder)
    again.steps(HALF, STEPS)
    return {
        "initial": initial,
        "rows": whole.rows,
        "final": whole.weights(),
        "average": whole.average(),
        "resumed rows": again.rows,
        "resumed final": again.weights(),
        "resumed average": again.average(),
        "saved": saved,
        "at another stage": {"weights": moved.weights(), "average": moved.average()},
        "validation": whole.method.validate(lambda: False),
        "given up": whole.method.validate(lambda: ranks.rank == 1),
    }


def broken(directory: Path, ranks: Ranks, stage: int) -> dict[str, Any]:
    """Three steps, in the second of which one rank meets a NaN."""
    run = Trained(method_of(tiny_config(str(directory), f"zero.stage={stage}"), ranks), ranks)
    run.steps(0, 2, broken=1)
    before, rows = run.weights(), list(run.rows)
    again = Trained(method_of(tiny_config(str(directory), f"zero.stage={stage}"), ranks), ranks)
    again.steps(0, 1)
    run.steps(2, 3)
    return {"rows": rows + run.rows[2:], "after": before, "before": again.weights()}


def main() -> None:
    torch.set_num_threads(1)
    directory, quick = Path(sys.argv[1]), "--quick" in sys.argv
    ranks = distributed.start(TIMEOUT_MINUTES)
    gc.collect()
    gc.freeze()  # see tests/trainer/two_ranks.py
    results: dict[str, Any] = {}
    for scenario in SCENARIOS:
        if scenario.quick or not quick:
            words = [*scenario.recipe.words(), *scenario.words]
            results[scenario.name] = training(directory, ranks, f"run {len(results)}", words)
    for stage, is_quick in BF16:
        if is_quick or not quick:
            words = [*CLASS.words(), f"zero.stage={stage}", "precision=bf16"]
            results[f"bf16 {stage}"] = training(directory, ranks, f"bf16 {stage}", words)
    for stage in (0,) if quick else (0, 1, 2, 3):
        results[f"broken {stage}"] = broken(directory, ranks, stage)
    if ranks.is_main:
        torch.save(results, directory / "results.pt")
    distributed.stop()


if __name__ == "__main__":
    main()

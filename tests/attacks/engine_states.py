"""One process that saves a small network in DeepSpeed at every stage, precision and offload, and loads hostile states.

python -m tests.attacks.engine_states DIRECTORY
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.attacks.hostile import plant
from tests.trainer.half import allowed
from tests.trainer.worlds import imports, in_world
from trainer.config.learning import OptimizerConfig, Precision, SharedOptimConfig, ZeroConfig

PLAIN = [(stage, precision, "none") for stage in range(4) for precision in ("fp32", "bf16", "fp16")]
OFFLOADED = [(stage, precision, "optimizer") for stage in (1, 2, 3) for precision in ("fp32", "bf16")]
CASES = [*PLAIN, *OFFLOADED, (3, "bf16", "parameters")]


def name_of(case: tuple[int, str, str]) -> str:
    stage, precision, offload = case
    return f"{stage}-{precision}-{offload}"


def engine_of(case: tuple[int, str, str]) -> Any:
    """A small network in an engine, before its first step."""
    from trainer.engine.engine import Engine
    from trainer.engine.engine_settings import EngineSettings

    stage, precision, offload = case
    torch.manual_seed(1)
    zero = ZeroConfig(
        stage=stage,
        persistence_threshold=0,
        offload_optimizer=offload != "none",
        offload_parameters=offload == "parameters",
    )
    settings = EngineSettings(
        stage=stage,
        precision=Precision(precision),
        optimizer=OptimizerConfig(),
        optim=SharedOptimConfig(),
        zero=zero,
        micro_batch=1,
        accumulation=1,
        ranks=1,
    )
    return Engine("generator", nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), settings)


def stepped(engine: Any) -> None:
    dtype = next(engine.module.parameters()).dtype
    engine.backward(engine(torch.ones(1, 4, dtype=dtype)).float().square().sum())
    engine.step(1e-3)


def work(directory: Path) -> dict[str, Any]:
    """Case -> whether the good state came back, and what every file with a hostile object in it met."""
    from trainer import distributed
    from trainer.checkpoint.files import fault, flush_and_digest

    distributed.start(5)
    found: dict[str, Any] = {}
    for case in CASES:
        good, mark = directory / name_of(case), directory / f"{name_of(case)}-CODE-WAS-RUN"
        engine = engine_of(case)
        stepped(engine)
        good.mkdir()
        engine.save(good)
        before = engine.full_state()
        files = sorted(good.rglob("*.pt"))
        complaints = [text for file in files if (text := fault(file, flush_and_digest(file)))]
        other = engine_of(case)
        other.load(good)
        after = other.full_state()
        refused: dict[str, list[str]] = {}
        for file in files:
            bad = directory / "bad"
            shutil.copytree(good, bad)
            hostile = bad / file.relative_to(good)
            plant(hostile, mark)
            said = fault(hostile, flush_and_digest(hostile))
            try:
                other.load(bad)  # as if the file had been replaced after it was looked at
            except ValueError as error:
                refused[file.name] = [said, str(error)]
            shutil.rmtree(bad)
        equal = all(torch.equal(value, after[name]) for name, value in before.items())
        found[name_of(case)] = {
            "complaints": complaints,
            "equal": equal,
            "files": [file.name for file in files],
            "refused": refused,
            "ran": mark.exists(),
        }
    distributed.stop()
    (directory / "found.json").write_text(json.dumps(found))
    return {}


if __name__ == "__main__":
    imports()
    with allowed():  # PyTorch calculates in fp16 on every processor
        in_world(1, lambda: work(Path(sys.argv[1])))

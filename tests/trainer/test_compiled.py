"""`compile=blocks` and `compile=all` against eager, digit for digit under the real engines; Inductor against fp64."""

import copy
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.transformer import SpaceTimeBlock
from tests.tools.rounding import Moved, Results, assert_within, with_bounds
from tests.trainer.cases import tiny_config
from trainer.engine.compiled import compile_forward
from trainer.estimate.trace import trace

ROOT = Path(__file__).parents[2]
USUAL_TORCH = torch.__version__.startswith("2.13.")
QUICK = [
    *("stage=3,mode=selective", "stage=1,mode=selective,precision=bf16,frames=mixed"),
    "stage=1,precision=bf16,compile=all",
]


def results_of(cases: list[str], file: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """What `compiled_steps` finds, by case, eager and compiled."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.compiled_steps", str(file), *cases],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, dict[str, Any]] = json.loads(file.read_text())
    return results


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return results_of(QUICK, tmp_path_factory.mktemp("compiled") / "results.json", 500)


def check(case: str, result: dict[str, Any]) -> None:
    """Eager's numbers; a graph for the first block and one for the others, for each number of frames; LPIPS's graph."""
    eager, compiled = result["eager"], result["compiled"]
    assert compiled["rows"] == eager["rows"]
    assert compiled["weights"] == eager["weights"]
    assert (eager["graphs"], compiled["breaks"]) == (0, {})
    graphs = 2 * (3 if "mixed" in case else 1) + ("compile=all" in case)
    # torch 2.11 compiles each block twice at ZeRO 3
    assert compiled["graphs"] == graphs or (not USUAL_TORCH and compiled["graphs"] <= 2 * graphs)


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK)
def test_what_is_compiled_trains_like_eager_digit_for_digit(quick: dict[str, dict[str, Any]], case: str) -> None:
    check(case, quick[case])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", range(4))
def test_every_stage_precision_and_recomputation(tmp_path: Path, stage: int, precision: str) -> None:
    modes, frames = ("none", "full", "every", "selective"), ("equal", "mixed")
    cases = [f"stage={stage},precision={precision},mode={mode},frames={kind}" for mode, kind in product(modes, frames)]
    for case, result in results_of(cases, tmp_path / "results.json", 550).items():
        print(case)
        check(case, result)


def differentiated(block: SpaceTimeBlock, x: Tensor, positions: Tensor, weight: Tensor) -> Results:
    """A block's output, and the gradient of its weighted sum."""
    x = x.clone().requires_grad_()
    out = block(x, positions)
    (out * weight).sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()} | {"x": x.grad}
    return {"out": out.detach()} | {f"d {name}": grad for name, grad in gradients.items() if grad is not None}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs g++ on the CPU")
def test_inductors_block_is_eagers_as_far_as_fp32_rounds() -> None:
    torch.manual_seed(0)
    block = SpaceTimeBlock(32, 4, causal=True)
    inputs = torch.randn(1, 4, 9, 32), torch.randn(4, 1, 32), torch.randn(1, 4, 9, 32)

    def compute(moved: Moved) -> Results:
        wide = moved.weights(copy.deepcopy(block))
        return differentiated(wide, *(moved(part) for part in inputs))

    exact, bounds = with_bounds(compute)
    compile_forward(block)
    found = differentiated(block, *inputs)
    torch._dynamo.reset()
    assert_within(found, exact, bounds)


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    config = tiny_config("unused", "compile=blocks")
    with pytest.raises(ValueError, match=r"compile=blocks needs a C\+\+ compiler.*no g\+\+.*compile=none"):
        config.check_device("cpu")
    monkeypatch.setenv("CXX", "/bin/sh")
    config.check_device("cpu")
    tiny_config("unused").check_device("cpu")


def test_an_estimate_does_not_compile() -> None:
    assert trace(tiny_config("unused", "compile=all"), 1) == trace(tiny_config("unused"), 1)

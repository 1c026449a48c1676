"""What the tests of the two ranks of VidTwin share: the ranks' results, the reference, and comparisons of the two.

The ranks run once for all files of `FILES` (see two_ranks.py and pair.py); the reference (see reference.py) contains no
DeepSpeed.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.tools.rounding import SEEDS, assert_within
from tests.trainer.cases import global_batches, mixed_batches
from tests.trainer.pair import shared_results
from tests.trainer.reference import Recipe, Reference, as_results, reference_of
from tests.trainer.two_ranks import SLOW

FILES = [Path(__file__).with_name(name) for name in ("test_two_ranks.py", "test_two_ranks_watched.py")]
Weights = dict[str, Tensor]


def scenarios(kind: str, cases: Iterable[Any]) -> list[Any]:
    """Cases of a test, those that only the slow run has marked."""
    marked = []
    for case in cases:
        words = case if isinstance(case, tuple) else (case,)
        marked.append(pytest.param(*words, marks=slow_marks(" ".join([kind, "stage", *map(str, words)]))))
    return marked


def slow_marks(name: str) -> list[pytest.MarkDecorator]:
    """The mark of the tests of a scenario that only the slow run has."""
    return [pytest.mark.slow] if name.startswith(SLOW) else []


def results_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the ranks have found, by scenario."""
    return shared_results("tests.trainer.two_ranks", FILES, request, tmp_path_factory)


def reference_from(results: dict[str, Any]) -> Callable[..., Reference]:
    """Runs the reference from the weights that the ranks began with; equal requests run once."""
    known: dict[str, Reference] = {}

    def run(recipe: Recipe, ranks: int, accumulation: int, seeds: Sequence[int] = SEEDS) -> Reference:
        key = f"{recipe} {ranks} {accumulation} {seeds}"
        if key not in known:
            name = "group norm" if recipe.discriminator.norm == "group" else "stage 0 accumulation 1"
            start = {part: part_of(results[name]["initial"], part) for part in ("vidtwin", "discriminator")}
            batches = mixed_batches() if recipe.model.min_frames else global_batches()
            known[key] = reference_of(recipe, start, batches, ranks, accumulation, seeds)
        return known[key]

    return run


def part_of(state: Weights, part: str) -> Weights:
    """The weights of one part of the generator's state, by their names in that part."""
    return {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}


def learnt(weights: Weights) -> Weights:
    """Without the running means of batch norms."""
    return {name: value for name, value in weights.items() if "running" not in name and "tracked" not in name}


def assert_same_training(result: dict[str, Any], expected: Reference) -> None:
    """Every term of the reference at each step, and the final weights, as far as rounding explains."""
    found = as_results(result["rows"], result["final"])
    assert_within({name: found[name] for name in expected.results}, expected.results, expected.bounds)

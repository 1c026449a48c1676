"""How many threads a rank takes beside others, and what a start says of devices and libraries."""

import pytest
import torch

from trainer.distributed import Ranks, described, threads_of

EIGHT, LOWER, UPPER = frozenset(range(8)), frozenset(range(4)), frozenset(range(4, 8))


@pytest.mark.parametrize(
    ("ranks", "threads"),
    [
        ([("a", EIGHT)], 8),
        ([("a", EIGHT)] * 2, 4),
        ([("a", frozenset(range(7)))] * 2, 3),
        ([("a", frozenset({0, 1}))] * 4, 1),
        ([("a", EIGHT)] * 2 + [("b", EIGHT)] * 3, 4),  # those of another machine do not count
        ([("a", LOWER), ("a", UPPER)], 4),  # SLURM has bound each task to cores of its own
    ],
)
def test_ranks_divide_the_cores_that_they_share(ranks: list[tuple[str, frozenset[int]]], threads: int) -> None:
    assert threads_of(ranks[0], ranks) == threads


def test_a_start_says_on_what_and_with_what_it_trains(alone: Ranks) -> None:
    import deepspeed

    device, versions = described(alone, "fp32")
    assert device == "device: CPU; 1 rank on 1 node; precision fp32"
    assert versions == f"torch {torch.__version__}, DeepSpeed {deepspeed.__version__}"

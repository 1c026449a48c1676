"""How many threads a rank takes on a machine of so many cores."""

import os
from collections.abc import Iterator

import pytest
import torch

from trainer.distributed import _share_cores


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(8, 2, 4), (7, 2, 3), (2, 4, 1), (4, None, 4)])
def test_the_ranks_of_a_machine_divide_its_cores(
    cores: int, ranks: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    if ranks is not None:
        monkeypatch.setenv("LOCAL_SIZE", str(ranks))
    _share_cores()
    assert torch.get_num_threads() == threads


def test_who_has_said_how_many_threads_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(5)
    _share_cores()
    assert torch.get_num_threads() == 5

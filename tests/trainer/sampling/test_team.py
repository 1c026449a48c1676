"""How samples are divided among ranks, and that an error of one rank is an error of all."""

from __future__ import annotations

from threading import Barrier, Thread
from typing import Any

import pytest

from data_pipeline.store.base import StoreError
from trainer.sampling.team import Team


def teams(count: int) -> list[Team]:
    """Ranks that meet in threads of this process."""
    values: list[Any] = [None] * count
    barrier = Barrier(count, timeout=30)

    def gathered(rank: int, value: Any) -> list[Any]:
        values[rank] = value
        barrier.wait()
        found = list(values)
        barrier.wait()
        return found

    return [Team(rank, count, lambda value, rank=rank: gathered(rank, value)) for rank in range(count)]  # type: ignore[misc]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 4])
def test_each_item_is_made_by_exactly_one_rank(count: int, batch: int) -> None:
    items, made, shown = list(range(11)), [list[int]() for _ in range(count)], list[int]()

    def run(team: Team) -> None:
        team.work(items, batch, made[team.rank].extend, shown.append)

    threads = [Thread(target=run, args=(team,)) for team in teams(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(item for some in made for item in some) == items
    assert max(map(len, made)) - min(map(len, made)) <= 1
    assert shown == [min(11, n * count * batch) for n in range(1, len(shown) + 1)]
    assert shown[-1] == 11


@pytest.mark.parametrize("error", [ValueError("no pixels"), PermissionError(13, "may not be written", "x.mp4")])
def test_an_error_of_one_rank_is_an_error_of_all(error: Exception) -> None:
    seen: dict[int, Exception] = {}

    def run(team: Team) -> None:
        def make(some: object) -> None:
            if team.rank == 1:
                raise error

        try:
            team.work(list(range(6)), 1, make)
        except (ValueError, StoreError) as raised:
            seen[team.rank] = raised

    threads = [Thread(target=run, args=(team,)) for team in teams(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(seen) == [0, 1, 2]
    words = "no pixels" if isinstance(error, ValueError) else "may not be written"
    assert all(words in str(raised) for raised in seen.values())

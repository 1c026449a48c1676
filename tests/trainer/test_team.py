"""How samples are divided among ranks, and that an error of one rank is an error of all."""

from __future__ import annotations

from collections.abc import Callable, Generator
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch

from data_pipeline.store.base import StoreError
from trainer import distributed
from trainer.distributed import Ranks
from trainer.join.guest import Absent, Guest
from trainer.join.launch import Launch, Member
from trainer.team import Feed, Team, joined


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


def in_threads(run: Callable[[Team], None], count: int) -> None:
    """Each rank of a team in a thread of its own."""
    threads = [Thread(target=run, args=(team,), daemon=True) for team in teams(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 4])
def test_each_item_is_made_by_exactly_one_rank(count: int, batch: int) -> None:
    items, made, shown = list(range(11)), [list[int]() for _ in range(count)], list[int]()

    def run(team: Team) -> None:
        team.work(items, batch, made[team.rank].extend, shown.append)

    in_threads(run, count)
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

    in_threads(run, 3)
    assert sorted(seen) == [0, 1, 2]
    words = "no pixels" if isinstance(error, ValueError) else "may not be written"
    assert all(words in str(raised) for raised in seen.values())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_items_of_unequal_size_are_each_done_once_and_their_results_reach_the_main_rank(count: int) -> None:
    """Item n has n + 1 results. A rank with long items is given fewer of them."""
    sizes = [9, 5, 5, 4, 3, 2, 1, 1, 1, 0, 0]
    taken = [list[tuple[int, int]]() for _ in range(count)]
    done = [list[int]() for _ in range(count)]

    def run(team: Team) -> None:
        def work(feed: Feed[int]) -> Generator[tuple[tuple[int, int], bool]]:
            for item in feed:
                done[team.rank].append(item)
                for number in range(sizes[item] + 1):
                    yield (item, number), number == sizes[item]

        team.deal(range(len(sizes)), work, taken[team.rank].append)

    in_threads(run, count)
    assert sorted(taken[0]) == [(item, number) for item, size in enumerate(sizes) for number in range(size + 1)]
    assert not any(taken[1:])
    assert sorted(item for some in done for item in some) == list(range(len(sizes)))
    assert all(len(some) >= 3 for some in done)


@pytest.mark.parametrize("where", ["work", "take"])
def test_an_error_in_work_or_in_taking_ends_all_ranks(where: str) -> None:
    seen: dict[int, Exception] = {}

    def run(team: Team) -> None:
        def work(feed: Feed[int]) -> Generator[tuple[int, bool]]:
            for item in feed:
                if where == "work" and team.rank == 1:
                    raise StoreError(28, "no space left", "x")
                yield item, True

        def take(result: int) -> None:
            if where == "take":
                raise StoreError(28, "no space left", "x")

        try:
            team.deal(range(8), work, take)
        except StoreError as error:
            seen[team.rank] = error

    in_threads(run, 3)
    assert sorted(seen) == [0, 1, 2]
    assert all("no space left" in str(error) for error in seen.values())


def test_a_process_that_waited_in_vain_names_no_setting_that_the_script_does_not_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """collective_timeout is one of a training; what several processes sample or measure has a limit of its own."""

    def alone(minutes: float, device: torch.device, *, setting: str, **others: Any) -> Ranks:
        member = Member(1, 2, 1, "127.0.0.1", 1)
        raise Absent(Guest(Launch("", 2), member, {}, timedelta(minutes=minutes), print, setting).waited())

    monkeypatch.setattr(distributed, "start", alone)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=r"^within 60 minutes$"), joined(torch.device("cpu"), str(tmp_path), {}):
        pass

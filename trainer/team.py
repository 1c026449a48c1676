"""The processes that share a job: which of them does what, and how an error of one ends them all."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch

from data_pipeline.store.base import StoreError
from trainer import distributed
from trainer.config.run import Device
from trainer.engine.device import find_device, own_device
from trainer.join.equality import Gather, on_all, versions
from trainer.join.guest import Absent

T = TypeVar("T")
R = TypeVar("R")
TIMEOUT_MINUTES = 60.0
"""How long a rank waits for the others: until all have started, and until all have made one more batch."""

AHEAD = 3
"""Items that a rank has been given and not yet finished, so that it can read the next one while it computes."""


class Feed(Generic[T]):
    """The items that a rank has been given so far, for a thread that iterates over them while more are added."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._closed = threading.Event()

    def add(self, item: T) -> None:
        """Give one more item."""
        self._items.put(item)

    def close(self) -> None:
        """End the iteration behind the items that were given, or at once where none is waited for any more."""
        self._closed.set()

    def __iter__(self) -> Iterator[T]:
        while True:
            closed = self._closed.is_set()  # looked at first: what was added before the feed closed is still given
            try:
                yield self._items.get(timeout=0.05)
            except queue.Empty:
                if closed:
                    return


@dataclass(frozen=True)
class Team:
    """This process among those that share a job; one that is alone is rank 0 of 1.

    Attributes:
        gather: a value of each rank -> the values of all ranks; every rank calls it.
    """

    rank: int = 0
    ranks: int = 1
    gather: Gather = lambda value: [value]

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes what there is only once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this rank: every `ranks`-th one, so that each item belongs to exactly one rank."""
        return items[self.rank :: self.ranks]

    def of_main(self, find: Callable[[], T]) -> T:
        """What the main rank finds, on every rank; every rank calls it.

        Raises:
            ValueError, StoreError: `find` raised it.
        """
        found = self._on_all(find if self.is_main else lambda: None)
        main: T = self.gather(found)[0]
        return main

    def work(
        self,
        items: Sequence[T],
        batch: int,
        make: Callable[[Sequence[T]], None],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Make this rank's share of the items in batches, in step with the other ranks; every rank calls it.

        Args:
            items: the same on every rank.
            batch: items that a rank makes together.
            make: makes some items; it calls no other rank.
            progress: called on the main rank with the number of items that all ranks have made.
        Raises:
            ValueError, StoreError: `make` raised it, on this rank or on another one.
        """
        mine = self.share(items)
        most = -(-len(items) // self.ranks)  # items of rank 0, which has the most
        for first in range(0, most, batch):
            some = mine[first : first + batch]
            self._on_all(partial(make, some) if some else lambda: None)
            if progress is not None and self.is_main:
                progress(min(len(items), (first + batch) * self.ranks))

    def deal(
        self,
        items: Sequence[T],
        work: Callable[[Feed[T]], Generator[tuple[R, bool]]],
        take: Callable[[R], None],
    ) -> None:
        """Do items of unequal size; a rank that finishes one is given the next. Every rank calls it.

        After each result the ranks meet, so that an error of one ends them all and the results reach the main rank.

        Args:
            items: the same on every rank; the largest should come first.
            work: takes the items of this rank, which it does in their order, and yields results, each with whether it
                is the last one of its item. Every item has a last result.
            take: receives, on the main rank, the results of all ranks.
        Raises:
            ValueError, StoreError: `work` or `take` raised it, on this rank or on another one.
        """
        waiting, unfinished, feed = deque(items), [0] * self.ranks, Feed[T]()
        arrived: list[R] = []

        def take_arrived() -> None:
            while arrived:
                take(arrived.pop(0))

        def step() -> tuple[R, bool] | None:
            take_arrived()
            return next(results) if unfinished[self.rank] else None

        with closing(work(feed)) as results, closing(feed):
            while waiting or any(unfinished):
                while waiting and min(unfinished) < AHEAD:
                    rank = unfinished.index(min(unfinished))
                    unfinished[rank] += 1
                    item = waiting.popleft()
                    if rank == self.rank:
                        feed.add(item)
                for rank, found in enumerate(self.gather(self._on_all(step))):
                    if found is not None:
                        unfinished[rank] -= found[1]
                        if self.is_main:
                            arrived.append(found[0])
            self._on_all(take_arrived)

    def _on_all(self, work: Callable[[], T]) -> T:
        """What `work` returns; its ValueError or error of the system ends the other ranks, too."""

        def stored() -> T:
            try:
                return work()
            except StoreError:
                raise
            except OSError as error:
                raise StoreError(error.errno, error.strerror or str(error), error.filename) from error

        return on_all(work if self.ranks == 1 else stored, self.gather)


ALONE = Team()


def device_of_rank(name: str) -> torch.device:
    """The device of `--device` for this process, which is number LOCAL_RANK on its machine.

    Raises:
        ValueError: see `find_device`; or one GPU is named for several processes, or GPUs are fewer than processes.
    """
    if _launched() == 1:
        return find_device(name)
    if ":" in name:
        raise ValueError(f"--device {name} is one GPU, and several processes were started; pass --device cuda")
    device = find_device(name)
    return own_device(Device.cuda) if device.type == "cuda" else device


@contextmanager
def joined(device: torch.device, output: str, equal: Mapping[str, str]) -> Iterator[Team]:
    """The processes that torchrun or deepspeed has started, as a team; a process that is alone joins nobody.

    Args:
        device: of this process.
        output: the folder that all of them write to.
        equal: what must be the same on all of them, as option -> text.
    Raises:
        NotOneRun: the processes differ, or another run or program has their port.
        StoreError: processes are missing.
    """
    if _launched() == 1:
        yield Team()
        return
    try:
        ranks = distributed.start(TIMEOUT_MINUTES, device, output=output, equal=versions() | dict(equal), setting="")
    except Absent as error:
        raise StoreError(str(error)) from error
    try:
        yield Team(ranks.rank, ranks.world_size, ranks.gather)
    except BaseException:
        distributed.abort(ranks)
        raise
    distributed.stop()


def _launched() -> int:
    """Processes of this launch, as the launcher's environment says."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1

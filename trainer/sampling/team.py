"""The processes that make samples together: which of them makes what, and how an error of one ends them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from data_pipeline.store.base import StoreError
from trainer import distributed
from trainer.config.run import Device
from trainer.engine.device import own_device
from trainer.evaluation.run import find_device
from trainer.join.equality import Gather, on_all, versions
from trainer.join.guest import Absent

T = TypeVar("T")
TIMEOUT_MINUTES = 60.0
"""How long a rank waits for the others: until all have started, and until all have made one more batch."""


@dataclass(frozen=True)
class Team:
    """This process among those that make samples together; one that is alone is rank 0 of 1.

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
        ranks = distributed.start(TIMEOUT_MINUTES, device, output=output, equal=versions() | dict(equal))
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

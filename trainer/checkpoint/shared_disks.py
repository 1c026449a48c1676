"""Which ranks see the same directory. The ranks try it out, because no launcher knows what is mounted on which node."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.store.base import StoreError
from data_pipeline.store.files import disk_errors
from trainer.distributed import Ranks
from trainer.join.equality import on_all


@dataclass(frozen=True)
class SharedDisks:
    """The ranks in groups; the ranks of a group share a directory. `rank` is the rank of this process."""

    groups: list[list[int]]
    rank: int

    @property
    def mine(self) -> list[int]:
        """The ranks of this rank's group, itself among them; ascending."""
        return self.groups[self.part]

    @property
    def part(self) -> int:
        """The number of this rank's group. Rank 0 is in group 0."""
        return next(number for number, group in enumerate(self.groups) if self.rank in group)

    @property
    def is_keeper(self) -> bool:
        """Whether this rank creates, completes and removes the checkpoints that its group shares."""
        return self.rank == self.mine[0]

    @property
    def apart(self) -> bool:
        """Whether some ranks do not see the files that other ranks write."""
        return len(self.groups) > 1

    def share(self, names: list[str]) -> list[str]:
        """The files, out of those that the group divides among its ranks, that this rank takes."""
        return names[self.mine.index(self.rank) :: len(self.mine)]


def find_shared_disks(ranks: Ranks, directory: Path) -> SharedDisks:
    """Every rank writes a file into `directory`, or into its nearest parent that exists, and looks for the others'.

    The files are removed again. Every rank calls this function.

    Raises:
        ValueError: a rank cannot make a file there; raised on every rank.
        StoreError: the disk of a rank is full; raised on every rank.
    """
    if ranks.world_size == 1:
        return SharedDisks([[0]], 0)
    place = directory.absolute()
    while not place.is_dir():
        place = place.parent
    token = ranks.broadcast(secrets.token_hex(4))
    probes = [place / f".probe-{token}-{rank}" for rank in range(ranks.world_size)]
    with ExitStack() as leaving:
        on_all(lambda: _touch(probes[ranks.rank], directory, leaving), ranks.gather)  # from here on every file is there
        first = next(rank for rank, probe in enumerate(probes) if probe.exists())
        firsts = ranks.gather(first)
    return SharedDisks([[r for r, f in enumerate(firsts) if f == first] for first in sorted(set(firsts))], ranks.rank)


def _touch(probe: Path, directory: Path, leaving: ExitStack) -> None:
    """Make an empty file, which is removed at the end of `leaving`. Raises: as `find_shared_disks`."""
    try:
        with disk_errors(probe.parent):
            probe.touch()
    except StoreError:
        raise
    except OSError as error:
        raise ValueError(
            f"{directory}: no file can be made in {probe.parent}, the nearest folder that exists there "
            f"({error.strerror}); mount it, or make it writable, on every node"
        ) from error
    leaving.callback(probe.unlink)

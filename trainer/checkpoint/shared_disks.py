"""Which ranks see the same directory. The ranks try it out, because no launcher knows what is mounted on which node."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from trainer.distributed import Ranks
from trainer.join.equality import named_ranks


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
    """
    if ranks.world_size == 1:
        return SharedDisks([[0]], 0)
    place = directory.absolute()
    while not place.is_dir():
        place = place.parent
    token = ranks.broadcast(secrets.token_hex(4))
    probes = [place / f".probe-{token}-{rank}" for rank in range(ranks.world_size)]
    problem = _touched(probes[ranks.rank])
    try:
        problems = ranks.gather(problem)  # from here on every file is there
        if failed := [rank for rank, text in enumerate(problems) if text]:
            raise ValueError(
                f"{directory}: {named_ranks(failed)} cannot make files {problems[failed[0]]}; mount it, or make it "
                "writable, on every node"
            )
        first = next(rank for rank, probe in enumerate(probes) if probe.exists())
        firsts = ranks.gather(first)
    finally:
        if not problem:
            probes[ranks.rank].unlink()
    return SharedDisks([[r for r, f in enumerate(firsts) if f == first] for first in sorted(set(firsts))], ranks.rank)


def _touched(probe: Path) -> str:
    """Make an empty file; where that fails, the place and the reason in words."""
    try:
        probe.touch()
    except OSError as error:
        return f"in {probe.parent}, the nearest folder that exists there ({error.strerror})"
    return ""

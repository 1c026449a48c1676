"""Which ranks see the same directory. Found by trying, because no launcher knows what is mounted where."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from trainer.distributed import Ranks


@dataclass(frozen=True)
class Neighbours:
    """The ranks as one of them sees them: `groups` of ranks that share a directory, this one's among them."""

    groups: list[list[int]]
    rank: int

    @property
    def mine(self) -> list[int]:
        """This rank and those that share its directory."""
        return self.groups[self.part]

    @property
    def part(self) -> int:
        """Which of the groups is this rank's; rank 0 is in group 0."""
        return next(number for number, group in enumerate(self.groups) if self.rank in group)

    @property
    def is_keeper(self) -> bool:
        """Whether this rank makes, completes and removes what its group shares."""
        return self.rank == self.mine[0]

    @property
    def apart(self) -> bool:
        """Whether there are ranks that do not see what others write."""
        return len(self.groups) > 1

    def share(self, names: list[str]) -> list[str]:
        """The part of a group's work that falls to this rank."""
        return names[self.mine.index(self.rank) :: len(self.mine)]


def find(ranks: Ranks, directory: Path) -> Neighbours:
    """Try who sees whose file in `directory`, or in what exists above it. Nothing is left. Every rank calls it."""
    if ranks.world_size == 1:
        return Neighbours([[0]], 0)
    place = directory.absolute()
    while not place.is_dir():
        place = place.parent
    token = ranks.broadcast(secrets.token_hex(4))
    probes = [place / f".probe-{token}-{rank}" for rank in range(ranks.world_size)]
    probes[ranks.rank].touch()
    try:
        ranks.barrier()
        first = next(rank for rank, probe in enumerate(probes) if probe.exists())
        firsts = ranks.gather(first)
    finally:
        probes[ranks.rank].unlink()
    return Neighbours([[r for r, f in enumerate(firsts) if f == first] for first in sorted(set(firsts))], ranks.rank)

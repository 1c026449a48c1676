"""Each rank's own time in a step, so that a slow node has a name.

Ranks step together, so the seconds of a step are the same on all of them. A rank's own time is that in which it waits
for no other rank: its forward passes and its wait for data. A slow device or a slow disk shows there.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from trainer.distributed import Ranks
from trainer.telemetry.journal import Journal

IN_A_ROW = 2
"""Log steps in a row in which a rank must be slow before it is named, because one may be an accident."""
SHOWN = 8
"""Rows of the table on the console: the slowest ranks."""


@dataclass(frozen=True)
class RankTime:
    """Seconds a step of one rank: of its forward passes, and of its wait for data."""

    forward: float
    data_wait: float

    @property
    def own(self) -> float:
        """Both together."""
        return self.forward + self.data_wait


def slow_ranks(times: Sequence[RankTime], share: float) -> set[int]:
    """The ranks whose own time is more than `share` above the median of all ranks' own times."""
    limit = (1 + share) * median(time.own for time in times)
    return {rank for rank, time in enumerate(times) if time.own > limit}


class RankTable:
    """Writes OUTPUT/ranks.jsonl on the main rank, a row at each log step, and names the ranks that are slow.

    Args:
        path: of the file.
        share: `telemetry.slow_rank`; 0 names no rank.
        say: prints some lines.
    """

    def __init__(self, path: Path, ranks: Ranks, share: float, say: Callable[[str], None]) -> None:
        self.ranks, self.share, self.say = ranks, share, say
        self.journal = Journal(path)
        self.hosts: list[str] = []
        self._slow_for: dict[int, int] = {}  # rank -> log steps in a row
        self._named: set[int] = set()

    def begin(self, step: int) -> None:
        """Open the file, without the rows of steps after `step`; the ranks say where they run. Every rank calls it."""
        self.hosts = self.ranks.gather(socket.gethostname())
        self._slow_for, self._named = {}, set()
        if self.ranks.is_main:
            self.journal.set_back(step)
            self.journal.write({"step": step, "event": "hosts", "hosts": self.hosts})

    def write(self, step: int, times: Sequence[RankTime]) -> None:
        """Write a row of the ranks' times, by rank; the main rank calls it.

        Args:
            step: the log step.
            times: means over the steps since the last log step.
        """
        columns = {
            "forward_seconds": [round(time.forward, 6) for time in times],
            "data_wait_seconds": [round(time.data_wait, 6) for time in times],
        }
        self.journal.write({"step": step} | columns)
        slow = slow_ranks(times, self.share) if self.share > 0 else set()
        self._slow_for = {rank: self._slow_for.get(rank, 0) + 1 for rank in slow}
        named = {rank for rank, count in self._slow_for.items() if count >= IN_A_ROW}
        if new := sorted(named - self._named):
            self.say(self._table(step, times, new))
        for rank in sorted(self._named - named):
            self.say(f"rank {rank} on {self.hosts[rank]} is no longer slow after step {step}")
        self._named = named

    def _table(self, step: int, times: Sequence[RankTime], new: Sequence[int]) -> str:
        middle = median(time.own for time in times)
        lines = [
            f"slow after step {step}: rank {rank} on {self.hosts[rank]} takes {times[rank].own:.3g} s of its own in a "
            f"step, the median of {len(times)} ranks is {middle:.3g} s"
            for rank in new
        ]
        width = max(len(host) for host in self.hosts)
        lines.append(f"  rank  {'host':<{width}}  forward s  wait for data s")
        slowest = sorted(range(len(times)), key=lambda rank: times[rank].own, reverse=True)
        lines += [
            f"  {rank:>4}  {self.hosts[rank]:<{width}}  {times[rank].forward:>9.3g}  {times[rank].data_wait:>15.3g}"
            for rank in slowest[:SHOWN]
        ]
        return "\n".join(lines)

    def close(self) -> None:
        """Close the file."""
        self.journal.close()

"""Processes of other launches that came to a meeting and were turned away, as rank 0 of the meeting tells of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.join.board import Board
from trainer.join.guest import VISITOR, VISITORS, Guest
from trainer.join.launch import Launch, one_run


class Visitors:
    """The names that such processes have left in the lobby. Rank 0 prints each of them once.

    A run whose nodes have different outputs looks like two launches. Without these lines, rank 0 would wait for a
    process that came long ago.

    Args:
        guest: rank 0.
        lobby: it may be older than the meeting (torchrun's store is), so names that lie there already do not count.
    """

    def __init__(self, guest: Guest, lobby: Board) -> None:
        self.guest, self.lobby = guest, lobby
        self.lines: list[str] = []
        self._seen = lobby.add(VISITORS, 0)

    def tell(self, awaited: Callable[[], str]) -> None:
        """Print who has come since the last call, and which ranks of this run are still `awaited`."""
        while self._seen < self.lobby.add(VISITORS, 0):
            visitor = self.lobby.read(f"{VISITOR}/{self._seen + 1}")
            if visitor is None:  # the process has taken its number and not written yet
                return
            self._seen += 1
            line = self._line(visitor)
            if line not in self.lines:
                self.lines.append(line)
                self.guest.say(f"{line}. Rank 0 goes on waiting for {awaited()}")

    def _line(self, visitor: dict[str, Any]) -> str:
        differing = Launch(**visitor["launch"]).differences(self.guest.launch)
        return (
            f"rank {visitor['rank']} of another run came from {visitor['node']} and was turned away: "
            f"{'; '.join(differing.values())}; {one_run(differing)}"
        )

"""One process that comes to the meeting of a launch: what it knows and says, and how it is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist

from trainer.join.board import ANSWER_S, Board, wait
from trainer.join.equality import Groups, described, speakers
from trainer.join.launch import OTHER_PORT, Launch, Member, NotOneRun, one_run

REPORT_S = 60.0  # between two lines that say which rank is waited for
TOGETHER_S = 30.0  # for the process of a node that prints to have been turned away, too
LOBBY, CARD = "lobby", "card"  # what every process that comes may read
VISITORS, VISITOR = "visitors", "visitor"  # how many processes of other launches came, and what each left of itself


class Absent(RuntimeError):
    """Not all ranks came in time. The same command may work later."""


@dataclass
class Guest:
    """One process that comes to the meeting.

    Attributes:
        launch, member: the process's own.
        texts: what must be equal on all ranks; see `equality`.
        patience: how long the process waits for the others.
        say: prints a line.
        setting: the key that says the patience in minutes, for messages; empty where the user cannot set it.
    """

    launch: Launch
    member: Member
    texts: Mapping[str, str]
    patience: timedelta
    say: Callable[[str], None]
    setting: str = "collective_timeout"

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.patience.total_seconds()
        self._next_report = time.monotonic() + REPORT_S
        self._said: set[str] = set()

    def report(self, line: Callable[[], str]) -> None:
        """Say once every `REPORT_S` which rank is waited for; one process of each node says it."""
        if time.monotonic() < self._next_report or self.member.local_rank:
            return
        self._next_report += REPORT_S
        self.say(line())

    def say_once(self, line: str) -> None:
        """Say what the process will say again when it looks again."""
        if line not in self._said and not self.member.local_rank:
            self.say(line)
        self._said.add(line)

    def turn_away(self, lobby: Board, card: Mapping[str, Any], differing: Mapping[str, str]) -> NoReturn:
        """End this process, which came to another launch's port, once the process of its node that prints is there.

        That process leaves its name for rank 0 of the other launch, which may be waiting for it.
        """
        member = self.member
        key = f"turned away/{self.launch}/{member.node}"
        if member.local_rank == 0:
            visitor = {"launch": self.launch.as_dict(), "rank": member.rank, "node": member.node}
            lobby.put(f"{VISITOR}/{lobby.add(VISITORS, 1)}", visitor)
            lobby.put(key, True)
        else:
            lobby.wait([key], time.monotonic() + TOGETHER_S)
        raise NotOneRun(
            f"another run has port {member.port} of {member.address}, begun by {card['name']}, and goes on: "
            f"{'; '.join(differing.values())}. {OTHER_PORT}; or, {one_run(differing)}"
        )

    def card(self, store: dist.Store) -> Mapping[str, Any] | None:
        """What rank 0 of the run at a store says of itself; None where no run says anything within `ANSWER_S`."""
        lobby = Board(store, LOBBY)
        if not lobby.wait([CARD], time.monotonic() + ANSWER_S):
            return None
        card: Mapping[str, Any] = lobby.read(CARD)
        differing = Launch(**card["launch"]).differences(self.launch)
        if differing:
            self.turn_away(lobby, card, differing)
        return card

    def refuse(self, board: Board, differing: Mapping[str, Groups]) -> NoReturn:
        """End every rank with one message; rank 0 has found what differs, and stays until all have the message."""
        rank = self.member.rank
        if rank in speakers(differing):
            board.put(f"texts/{rank}", {key: self.texts[key] for key in differing if key in self.texts})
        if rank == 0:
            board.wait([f"texts/{speaker}" for speaker in speakers(differing)], time.monotonic() + ANSWER_S)
            texts = {speaker: board.read(f"texts/{speaker}") or {} for speaker in speakers(differing)}
            board.put("refusal", described(differing, texts))
        board.wait(["refusal"], time.monotonic() + 2 * ANSWER_S)
        message = board.read("refusal") or described(differing, {rank: self.texts})
        self.leave(board, self.member.ranks)
        raise NotOneRun(message)

    def leave(self, board: Board, count: int = 0) -> None:
        """Say that this rank has read how the meeting ends.

        Args:
            count: rank 0 holds the store, so it waits until so many ranks have left, unless they take longer than
                `ANSWER_S`.
        """
        board.add("left", 1)
        if self.member.rank == 0:
            wait(lambda: board.add("left", 0) >= count, time.monotonic() + ANSWER_S)

    def waited(self) -> str:
        """How long the process has waited, for messages."""
        minutes = f"{self.patience.total_seconds() / 60:g} minutes"
        return f"within {self.setting}={minutes}" if self.setting else f"within {minutes}"

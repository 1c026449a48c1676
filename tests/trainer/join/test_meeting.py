"""The meeting of ranks at one port, over real sockets; each rank is a thread, because no test here ends a process.

tests/cluster/test_one_run.py has the same with processes.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from tests.tools.ports import free_port
from trainer.join import board, guest, meeting
from trainer.join.board import Board
from trainer.join.guest import CARD, LOBBY, Absent, Guest
from trainer.join.launch import Launch, Member, NotOneRun
from trainer.join.meeting import meet

PATIENCE_S = 60.0
EQUAL = {"steps": "10", "seed": "1"}


class Launched:
    """A launch of `ranks` threads; `said` is what they print."""

    def __init__(self, ranks: int, port: int, output: str = "/runs/a", agent_store: bool = False) -> None:
        self.launch = Launch(output, ranks)
        self.member = Member(0, ranks, 0, "127.0.0.1", port, agent_store)
        self.said: list[str] = []
        self.pool = ThreadPoolExecutor(ranks)

    def start(
        self, rank: int, texts: dict[str, str] | None = None, *, patience: float = PATIENCE_S, local_rank: int = 0
    ) -> Future[dist.Store]:
        """Let a rank come to the meeting."""
        name = f"process {rank} of {self.launch.output} ({time.monotonic_ns()})"
        member = replace(self.member, rank=rank, local_rank=local_rank, name=name)
        come = Guest(self.launch, member, texts or EQUAL, timedelta(seconds=patience), self.said.append)
        return self.pool.submit(meet, come)

    def wait_for_words(self, words: str) -> None:
        until(lambda: any(words in line for line in self.said), f"{words!r} in {self.said}")


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited too long for {what}"
        time.sleep(0.01)


def assert_joined(members: Sequence[Future[dist.Store]]) -> None:
    """Each reads what the others write into the store of the group."""
    stores = [member.result(PATIENCE_S) for member in members]
    for rank, store in enumerate(stores):
        store.set(f"rank {rank}", str(rank))
    assert {bytes(store.get(f"rank {rank}")) for store in stores for rank in range(len(stores))} == {
        str(rank).encode() for rank in range(len(stores))
    }
    assert len({bytes(store.get("rank 0")) for store in stores}) == 1


def errors(members: Sequence[Future[dist.Store]], kind: type[Exception]) -> set[str]:
    """What the ranks, each of which is refused, say."""
    found = [member.exception(PATIENCE_S) for member in members]
    assert all(isinstance(error, kind) for error in found), found
    return set(map(str, found))


@pytest.fixture
def port() -> int:
    return free_port()


@contextmanager
def torchruns_store(port: int) -> Iterator[dist.TCPStore]:
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    yield store


def test_ranks_meet_in_any_order(port: int) -> None:
    launched = Launched(4, port)
    assert_joined([launched.start(rank) for rank in (3, 1, 0, 2)])


def test_a_rank_that_is_alone_needs_no_port() -> None:
    assert isinstance(Launched(1, 0).start(0).result(PATIENCE_S), dist.HashStore)


@pytest.mark.parametrize("when", ["while ranks are missing", "while it trains"])
def test_a_process_of_another_launch_is_told_so_and_the_run_goes_on(port: int, when: str) -> None:
    first, second = Launched(3, port), Launched(2, port, output="/runs/b")
    members = [first.start(0), first.start(1)]
    if when == "while it trains":
        members.append(first.start(2))
        assert_joined(members)
    else:
        board_of(port, first)
    other = second.start(1, local_rank=1)  # it prints nothing, so it stays until the rank has come that prints
    (line,) = errors([second.start(0), other], NotOneRun)
    assert f"another run has port {port} of 127.0.0.1, begun by process 0 of /runs/a" in line
    assert "output=/runs/a there and output=/runs/b here" in line
    assert "--master_port" in line
    assert line.endswith("if this is meant to be one run, give every node the same output and number of ranks")
    if when == "while ranks are missing":
        first.wait_for_words("was turned away")
        members.append(first.start(2))
    assert_joined(members)


def test_rank_0_says_once_which_node_with_another_output_came_for_a_missing_rank(port: int) -> None:
    """Two nodes of one run whose commands differ in `output`: the one that has rank 0 must not wait without a word."""
    first, second = Launched(2, port), Launched(2, port, output="/runs/b")
    member = first.start(0, patience=4.0)
    board_of(port, first)
    for _ in range(2):  # the second node is started again
        (line,) = errors([second.start(1)], NotOneRun)
        assert line.endswith("or, if this is meant to be one run, give every node the same output")
    turned_away = (
        f"rank 1 of another run came from {socket.gethostname()} and was turned away: output=/runs/b there and "
        "output=/runs/a here; if this is meant to be one run, give every node the same output"
    )
    (line,) = errors([member], Absent)
    assert line == (
        f"rank 1 of 2 did not come to 127.0.0.1:{port} within collective_timeout={4 / 60:g} minutes; {turned_away}"
    )
    assert first.said == [f"{turned_away}. Rank 0 goes on waiting for rank 1"]


def test_who_was_turned_away_before_a_meeting_in_torchruns_store_is_not_told_again(port: int) -> None:
    with torchruns_store(port) as store:
        Board(store, LOBBY).put(CARD, {"launch": Launch("/runs/a", 2).as_dict(), "name": "old", "number": "old"})
        errors([Launched(2, port, output="/runs/b", agent_store=True).start(1)], NotOneRun)
        launched = Launched(2, port, agent_store=True)
        assert_joined([launched.start(0), launched.start(1)])
    assert not any("turned away" in line for line in launched.said)


def board_of(port: int, launched: Launched) -> Board:
    """The board of a meeting that waits for ranks."""
    until(lambda: can_connect(port), "rank 0")
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    lobby = Board(store, LOBBY)
    until(lambda: lobby.has([CARD]), "the card")
    return Board(store, lobby.read(CARD)["number"])


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def test_a_difference_ends_all_ranks_with_one_message(port: int) -> None:
    launched = Launched(4, port)
    other = EQUAL | {"seed": "2"}
    (line,) = errors([launched.start(rank, other if rank >= 2 else None) for rank in range(4)], NotOneRun)
    assert "seed is 1 on ranks 0-1, 2 on ranks 2-3." in line
    assert "steps" not in line


def test_missing_ranks_are_named_while_they_are_waited_for_and_at_the_end(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "REPORT_S", 0.2)
    launched = Launched(4, port)
    members = [launched.start(0, patience=4.0), launched.start(2)]
    launched.wait_for_words(f"waiting for ranks 1, 3 of 4 at 127.0.0.1:{port}")
    (line,) = errors(members, Absent)
    assert line.startswith(f"ranks 1, 3 of 4 did not come to 127.0.0.1:{port} within collective_timeout=")


def test_a_missing_rank_0_is_named_too(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "REPORT_S", 0.2)
    launched = Launched(2, port)
    member = launched.start(1, patience=2.0)
    launched.wait_for_words(f"rank 1 waits for rank 0 at 127.0.0.1:{port} (")
    (line,) = errors([member], Absent)
    assert "rank 1 did not join rank 0" in line


def test_a_process_that_died_on_its_seat_is_replaced(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "ROLL_CALL_S", 0.5)
    launched = Launched(3, port)
    members = [launched.start(0)]
    assert board_of(port, launched).claim("seat/1", "process 9 on elsewhere") == "process 9 on elsewhere"
    members += [launched.start(1), launched.start(2)]
    assert_joined(members)
    launched.wait_for_words("rank 1 does not answer any more (process 9 on elsewhere)")
    launched.wait_for_words("rank 1 waits: process 9 on elsewhere has the place of rank 1")


def test_a_restart_waits_until_the_earlier_start_has_ended(port: int) -> None:
    """Rank 0 waits for the port, rank 1 for its seat; both finish the meeting when the earlier store is closed."""
    earlier = Launched(2, port)
    first = [earlier.start(0), earlier.start(1)]
    assert_joined(first)
    again = Launched(2, port)
    members = [again.start(0), again.start(1)]
    again.wait_for_words("waiting up to 120 s for process 0 of /runs/a (")
    again.wait_for_words(f"an earlier start of this run, which has port {port}")
    again.wait_for_words("rank 1 waits: process 1 of /runs/a")
    assert not any(member.done() for member in members)
    first.clear()
    earlier.pool.shutdown()
    assert_joined(members)


def test_a_run_that_is_started_twice_is_not_waited_for_without_end(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "EARLIER_S", 0.5)
    first, second = Launched(2, port), Launched(2, port)
    members = [first.start(0), first.start(1)]
    assert_joined(members)
    (line,) = errors([second.start(0)], Absent)
    assert "for process 0 of /runs/a" in line
    assert f"which has port {port}; stop it" in line


def test_an_earlier_start_is_waited_for_as_long_as_is_said(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for every 25 seconds here: after 0, 25, ... 125 seconds, the first time after the two minutes."""
    first, second = Launched(2, port), Launched(2, port)
    members = [first.start(0), first.start(1)]  # which keep the store open
    assert_joined(members)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 25

    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    (line,) = errors([second.start(0)], Absent)
    assert line.startswith("waited 120 s for process 0 of /runs/a")
    assert now == [125.0]


def test_what_an_attempt_left_in_torchruns_store_does_not_count(port: int) -> None:
    """The agent's store lives on when torchrun starts its ranks again; rank 1 may then come before rank 0."""
    with torchruns_store(port):
        for attempt in range(3):
            launched = Launched(2, port, agent_store=True)
            late = launched.start(1)
            if attempt:
                launched.wait_for_words("has the place of rank 1")
            assert_joined([launched.start(0), late])


def test_an_attempt_that_broke_off_in_torchruns_store_does_not_count(port: int) -> None:
    with torchruns_store(port) as store:
        Board(store, LOBBY).put(CARD, {"launch": Launch("/runs/a", 2).as_dict(), "name": "old", "number": "old"})
        launched = Launched(2, port, agent_store=True)
        late = launched.start(1)
        until(lambda: Board(store, "old").holder("seat/1") != "", "rank 1 on a seat of the old attempt")
        assert_joined([launched.start(0), late])


@pytest.mark.parametrize("who", ["silent", "a store of another program"])
def test_another_program_at_the_port_is_named(port: int, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (board, guest, meeting):
        monkeypatch.setattr(module, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", port)) if who == "silent" else torchruns_store(port):
        launched = Launched(2, port)
        other = launched.start(1, patience=1.0)
        (line,) = errors([launched.start(0)], NotOneRun)
        assert line.startswith(f"another program has port {port} of this machine. give each run")
        (line,) = errors([other], Absent)
        assert f"did not join rank 0 at 127.0.0.1:{port}" in line


def test_a_port_that_may_not_be_opened_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object, **options: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refused)
    (line,) = errors([Launched(2, 80).start(0)], NotOneRun)
    assert line.startswith("port 80 cannot be opened on this machine (Permission denied)")


def test_a_port_that_becomes_free_while_its_holder_is_asked_is_taken(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of an earlier start that is about to end: it answers no more, and the question takes all the time."""
    holder = socket.create_server(("127.0.0.1", port))
    monkeypatch.setattr(meeting, "ANSWER_S", 0.0)

    def ask(address: str, asked: int, patience: timedelta) -> dist.TCPStore:
        if holder.fileno() < 0:
            return board.found(address, asked, patience)
        holder.close()
        raise ConnectionError("nothing came")

    monkeypatch.setattr(meeting, "found", ask)
    launched = Launched(2, port)
    first = launched.start(0)
    until(lambda: holder.fileno() < 0, "the question of rank 0")
    assert_joined([first, launched.start(1)])


def test_both_ends_of_a_store_give_up_after_the_time_that_they_were_given() -> None:
    """The process group uses them with that; the attempt to connect has a shorter one."""
    port, mine, its = free_port(), timedelta(minutes=7), timedelta(minutes=9)
    store = board.opened(port, mine)
    assert (store.timeout, board.found("127.0.0.1", port, its).timeout) == (mine, its)

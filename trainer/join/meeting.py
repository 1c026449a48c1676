"""All ranks of a launch meet before their process group begins, and no process of another launch is among them.

Rank 0 opens a store at the launch's port (under torchrun the agent has opened one) and writes there which launch it
belongs to. Every other process that comes reads this first. A process of another launch ends with what differs; it
takes no seat, and leaves its name, which rank 0 prints while it waits. A process of this launch takes the seat of its
rank.

When all seats are taken, rank 0 calls the roll. Each rank answers with the digests of what must be equal. A rank that
does not answer has died; its seat is free again for the process that replaces it. When all answer, rank 0 compares.

The seats of each meeting lie under a number that its rank 0 has drawn, so what an earlier attempt has left in a store
that lives on does not count. A process whose seat is taken waits: an earlier start of the run may be about to end.
"""

from __future__ import annotations

import errno
import itertools
import secrets
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from trainer.join.board import ANSWER_S, Board, found, opened
from trainer.join.equality import differences, digests, named_ranks
from trainer.join.guest import CARD, LOBBY, Absent, Guest
from trainer.join.launch import OTHER_PORT, NotOneRun
from trainer.join.visitors import Visitors

ROLL_CALL_S = 30.0  # for all ranks to answer
LOOK_S = 0.5  # between two attempts to open or to find a store
EARLIER_S = 120.0  # for an earlier start of the run to leave its port: as long as its lock on the output is waited for


def meet(guest: Guest) -> dist.Store:
    """Wait for all ranks of the launch.

    Returns:
        A store for their process group, which no other process uses.
    Raises:
        NotOneRun: the port belongs to another launch or program, or the ranks differ in what must be equal.
        Absent: ranks are missing after the guest's patience.
    """
    if guest.member.ranks == 1:
        return dist.HashStore()
    return _host(guest) if guest.member.rank == 0 else _join(guest)


def _host(guest: Guest) -> dist.Store:
    """Rank 0's part."""
    member = guest.member
    store = _agents(guest) if member.agent_store else _opened(guest)
    number = secrets.token_hex(8)
    card = {"launch": guest.launch.as_dict(), "name": member.name, "number": number}
    board = Board(store, number)
    lobby = Board(store, LOBBY)
    visitors = Visitors(guest, lobby)
    lobby.put(CARD, card)
    for call in itertools.count():
        _wait_for_seats(guest, board, call, visitors)
        answers = _call_the_roll(guest, board, call)
        if len(answers) == member.ranks:
            break
        board.put(f"outcome/{call}", {"again": True})
    differing = differences([answers[rank] for rank in range(member.ranks)])
    board.put(f"outcome/{call}", {"differing": differing})
    if differing:
        guest.refuse(board, differing)
    return _group_store(store, number)


def _agents(guest: Guest) -> dist.TCPStore:
    """The store that torchrun's agent has opened before it started the ranks."""
    member = guest.member
    try:
        return found(member.address, member.port, guest.patience)
    except OSError as error:
        raise Absent(f"torchrun's store at {member.where} does not answer ({error})") from error


def _opened(guest: Guest) -> dist.TCPStore:
    """The store at the launch's port. An earlier start of this run that still has the port is waited for."""
    port, begin = guest.member.port, time.monotonic()
    answered, in_vain = begin, False
    while True:
        try:
            return opened(port, guest.patience)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise NotOneRun(
                    f"port {port} cannot be opened on this machine ({error.strerror}). {OTHER_PORT}"
                ) from error
        # Asked once in vain says too little: an earlier start may have ended while it was asked, and left the port.
        silent = in_vain and time.monotonic() > answered + ANSWER_S
        card = _neighbour(guest)
        in_vain = card is None
        if card is not None:
            answered, earlier = time.monotonic(), f"{card['name']}, an earlier start of this run, which has port {port}"
            guest.say_once(f"waiting up to {EARLIER_S:.0f} s for {earlier}")
            if answered > begin + EARLIER_S:
                raise Absent(
                    f"waited {EARLIER_S:.0f} s for {earlier}; stop it, and the same command goes on from there"
                )
        elif silent:
            raise NotOneRun(f"another program has port {port} of this machine. {OTHER_PORT}")
        time.sleep(LOOK_S)


def _neighbour(guest: Guest) -> Mapping[str, Any] | None:
    """The card of an earlier start of this run that has the port; None where nobody answers as a run does.

    Raises:
        NotOneRun: another run has the port.
    """
    try:
        return guest.card(found("127.0.0.1", guest.member.port, guest.patience))
    except (OSError, dist.DistError):  # what has the port is no store, or has just ended
        return None


def _wait_for_seats(guest: Guest, board: Board, call: int, visitors: Visitors) -> None:
    """Wait until a process has come for each rank, and say which other processes came and were turned away.

    Raises:
        Absent: not all came in time; raised on every rank that did.
    """
    member = guest.member
    seats = {rank: _seat(rank) for rank in range(1, member.ranks)}

    def missing() -> str:
        return named_ranks(rank for rank, seat in seats.items() if not board.has([seat]))

    def report() -> bool:
        visitors.tell(missing)
        guest.report(lambda: f"waiting for {missing()} of {member.ranks} at {member.where}")
        return True

    if board.wait(list(seats.values()), guest.until, report):
        return
    seated = sum(board.has([seat]) for seat in seats.values())
    remedy = ". ".join(visitors.lines) or "see the output of these ranks"
    text = f"{missing()} of {member.ranks} did not come to {member.where} {guest.waited()}; {remedy}"
    board.put(f"outcome/{call}", {"absent": text})
    board.put(f"call/{call}", True)
    guest.leave(board, seated + 1)
    raise Absent(text)


def _call_the_roll(guest: Guest, board: Board, call: int) -> dict[int, dict[str, str]]:
    """Ask all ranks for their digests; the answers by rank. The seat of a rank that does not answer is free then."""
    board.put(f"call/{call}", True)
    keys = {rank: f"here/{call}/{rank}" for rank in range(1, guest.member.ranks)}
    board.wait(list(keys.values()), time.monotonic() + ROLL_CALL_S)
    answers = {0: digests(guest.texts)}
    for rank, key in keys.items():
        answer, holder = board.read(key), board.holder(_seat(rank))
        if answer is not None and answer["name"] == holder:
            answers[rank] = answer["digests"]
        else:
            guest.say(f"rank {rank} does not answer any more ({holder}); waiting for a process that takes its place")
            board.release(_seat(rank))
    return answers


def _join(guest: Guest) -> dist.Store:
    """The part of all other ranks. Whatever breaks off on the way, they come again, as long as they have patience."""
    member = guest.member
    while True:
        try:
            store = found(member.address, member.port, guest.patience)
            card = guest.card(store)
            if card is None:
                reason = "no run is there yet"
            else:
                board = Board(store, card["number"])
                holder = board.claim(_seat(member.rank), member.name)
                if holder == member.name and _sit(guest, board, Board(store, LOBBY), card):
                    return _group_store(store, card["number"])
                reason = f"{holder} has the place of rank {member.rank}"
                if holder != member.name:
                    guest.say_once(f"rank {member.rank} waits: {reason}, from an earlier start of this run")
        except OSError as error:
            reason = str(error)
        except dist.DistError:
            reason = "rank 0 has ended"
        if time.monotonic() > guest.until:
            raise Absent(f"rank {member.rank} did not join rank 0 at {member.where} {guest.waited()} ({reason})")
        guest.report(lambda reason=reason: f"rank {member.rank} waits for rank 0 at {member.where} ({reason})")  # type: ignore[misc]
        time.sleep(LOOK_S)


def _sit(guest: Guest, board: Board, lobby: Board, card: Mapping[str, Any]) -> bool:
    """Answer each roll call until the meeting ends; False where it is broken off, or the seat was given away.

    Raises:
        NotOneRun: the ranks differ in what must be equal.
        Absent: rank 0 has given others up.
    """
    member, seat = guest.member, _seat(guest.member.rank)

    def goes_on() -> bool:  # torchrun's store outlives a meeting; then the next rank 0 has put another card there
        return bool(lobby.read(CARD) == card)

    for call in itertools.count():
        if not board.wait([f"call/{call}"], guest.until, goes_on):
            return False
        board.put(f"here/{call}/{member.rank}", {"name": member.name, "digests": digests(guest.texts)})
        if not board.wait([f"outcome/{call}"], time.monotonic() + 2 * ROLL_CALL_S, goes_on):
            return False
        outcome = board.read(f"outcome/{call}")
        if "absent" in outcome:
            guest.leave(board)
            raise Absent(outcome["absent"])
        if "differing" in outcome:
            if outcome["differing"]:
                guest.refuse(board, outcome["differing"])
            return True
        if board.holder(seat) != member.name:
            return False
    raise AssertionError("itertools.count() has no end")


def _seat(rank: int) -> str:
    return f"seat/{rank}"


def _group_store(store: dist.Store, number: str) -> dist.Store:
    return dist.PrefixStore(f"{number}/group", store)

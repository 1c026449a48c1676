"""Child processes: what goes there comes back, and each way to end is told."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from data_pipeline.outside import child
from data_pipeline.outside.child import NotStarted, OneChild, Program

ECHO = Program(
    module="tests.data_pipeline.outside.echo", named="the echo", settings={"word": "hm"}, environment={"ECHO": "yes"}
)


@pytest.fixture(scope="module")
def echo() -> Iterator[OneChild]:
    one = OneChild(lambda: ECHO)
    yield one
    one.close()


def asked(echo: OneChild, data: bytes, announced: int | None = None) -> dict[str, object]:
    child = echo.running()
    child.send({"bytes": len(data), "announced": len(data) if announced is None else announced}, data)
    return child.receive(60)


@pytest.mark.parametrize("data", [b"", b"\n{}\n", bytes(range(256)) * 9000])
def test_bytes_and_settings_come_back(data: bytes, echo: OneChild) -> None:
    assert asked(echo, data) == {"word": "hm", "variable": "yes", "bytes": len(data)}
    assert echo.running().read(len(data), 2**22) == data


@pytest.mark.parametrize("announced", [-1, 11, 10**15])
def test_an_announcement_of_too_many_bytes_is_no_answer(announced: int, echo: OneChild) -> None:
    answer = asked(echo, b"", announced)
    with pytest.raises(EOFError):
        echo.running().read(int(str(answer["bytes"])), 10)


def test_a_child_that_has_ended_is_followed_by_another(echo: OneChild) -> None:
    asked(echo, b"")
    first, before = echo.pid, echo.starts
    assert first is not None
    os.kill(first, signal.SIGSEGV)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    with pytest.raises((EOFError, ConnectionError)):
        asked(echo, b"")
    assert echo.close(0.5) == "killed by SIGSEGV"
    assert echo.close() == "not running"
    assert asked(echo, b"")["word"] == "hm"
    assert echo.starts == before + 1
    assert echo.pid not in (None, first)


def test_a_stopped_child_is_late(echo: OneChild) -> None:
    asked(echo, b"")
    assert echo.pid is not None
    os.kill(echo.pid, signal.SIGSTOP)
    echo.running().send({"bytes": 0, "announced": 0})
    with pytest.raises(TimeoutError):
        echo.running().receive(0.2)
    assert echo.close() == "killed by SIGKILL"


def test_a_machine_without_a_process_left_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("data_pipeline.outside.child.subprocess.Popen", full)
    with pytest.raises(NotStarted, match=r"^the echo did not start: Resource temporarily unavailable$"):
        OneChild(lambda: replace(ECHO, named="the echo")).running()


def test_a_child_that_does_not_start_is_named_with_how_it_ended() -> None:
    missing = Program(module="tests.data_pipeline.outside.no_such_module", named="the echo", quiet=True)
    with pytest.raises(NotStarted, match=r"^the echo did not start: exit status 1$"):
        OneChild(lambda: missing).running()


def ended(pid: int | None, number: int) -> None:
    """Kill a child of this process from outside, and wait until it has ended."""
    assert pid is not None
    os.kill(pid, number)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_child_that_serves_a_few_calls_is_renewed_and_one_that_ended_between_two_costs_nothing() -> None:
    one = OneChild(lambda: ECHO, serves=2)
    pids = []
    for _ in range(3):
        assert asked(one, b"")["word"] == "hm"
        pids.append(one.pid)
    assert pids[0] == pids[1] != pids[2]
    ended(one.pid, signal.SIGKILL)
    assert asked(one, b"")["word"] == "hm"
    assert (one.starts, one.served) == (3, 1)
    one.kill()  # on purpose: who asks next has to meet its end
    with pytest.raises((EOFError, ConnectionError)):
        asked(one, b"")
    assert one.close(0.5) == "killed by SIGKILL"
    assert one.served == 0
    assert asked(one, b"")["word"] == "hm"
    one.close()


def test_a_process_with_many_open_files_speaks_with_its_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """`select` refuses the number of a file from 1024 on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this process may not open 2048 files")
    pair = socket.socketpair

    def high_pair() -> tuple[socket.socket, ...]:
        low = pair()
        high = tuple(socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 1500)) for end in low)
        for end in low:
            end.close()
        return high

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        monkeypatch.setattr(child.socket, "socketpair", high_pair)
        one = OneChild(lambda: ECHO)
        assert asked(one, b"many")["bytes"] == 4
        assert one.running().read(4, 4) == b"many"
        one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_fork_of_a_process_that_has_started_children_starts_its_own(echo: OneChild) -> None:
    echo.running()
    fork = os.fork()
    if not fork:  # nothing of the test runner may run in here
        signal.alarm(30)
        own = OneChild(lambda: ECHO)
        answered = asked(own, b"")["word"] == "hm"
        own.close()
        os._exit(0 if answered else 1)
    assert os.waitpid(fork, 0)[1] == 0

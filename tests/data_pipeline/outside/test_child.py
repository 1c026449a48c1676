"""Child processes: what goes there comes back, and each way to end is told."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

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

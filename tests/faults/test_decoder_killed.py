"""The decoder's process is killed from outside, as by a kernel short of memory: no row pays for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.isolate import IsolatedCutter
from data_pipeline.cut.result import CutResult
from data_pipeline.cut.video import UndecodableVideo
from data_pipeline.outside import child
from tests.faults.builds import real_clip


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds of real frames."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    path.write_bytes(real_clip("bikes.mp4", 0, 60))
    return path


@pytest.fixture(scope="module")
def expected(video: Path) -> CutResult:
    """What the cutter gives in this process."""
    result = cut_clips(video, config=ClipConfig())
    assert result.clips
    return result


@pytest.fixture
def cutter() -> Iterator[IsolatedCutter]:
    with IsolatedCutter(ClipConfig(), timeout_s=120, memory_bytes=4_000_000_000) as cutter:
        yield cutter


def pid_of(cutter: IsolatedCutter) -> int:
    assert cutter.pid is not None
    return cutter.pid


def test_killed_between_two_rows(cutter: IsolatedCutter, video: Path, expected: CutResult) -> None:
    assert cutter.cut(video) == expected
    os.kill(pid_of(cutter), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(cutter), os.WEXITED | os.WNOWAIT)
    assert cutter.cut(video) == expected


def test_killed_in_the_middle_of_a_row(cutter: IsolatedCutter, video: Path, expected: CutResult) -> None:
    assert cutter.cut(video) == expected
    first = pid_of(cutter)
    timer = threading.Timer(0.02, os.kill, (first, signal.SIGKILL))
    timer.start()
    assert cutter.cut(video) == expected
    timer.join()
    assert pid_of(cutter) != first


def test_sigterm_to_the_whole_job_does_not_end_the_decoder_alone(
    cutter: IsolatedCutter, video: Path, expected: CutResult
) -> None:
    assert cutter.cut(video) == expected
    first = pid_of(cutter)
    os.kill(first, signal.SIGTERM)
    assert cutter.cut(video) == expected
    assert pid_of(cutter) == first


def child_that(action: str) -> Callable[..., subprocess.Popen[bytes]]:
    """A stand-in for the child: greets, takes one request, then does as told on its socket `s`."""
    program = (
        "import os, socket, sys; s = socket.socket(fileno=int(sys.argv[1])); f = s.makefile('rb'); f.readline();"
        f"s.sendall(b'{{}}\\n'); f.readline(); {action}"
    )
    popen = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return popen([sys.executable, "-c", program, *command[3:]], **options)  # type: ignore[call-overload, no-any-return]

    return start


CLIP = (
    '{"number": 0, "start": 0, "end": 1, "frames": 8, "height": 2, "width": 2, "fps_error": 0, "source_pts": [], '
    '"measures": {}, "phash": "0", "bytes": 100}'
)


HALF_A_CLIP = f'{{"clips": [{CLIP}], "rejected": [], "source": {{}}}}\n' + "x" * 50


def test_a_child_that_stops_in_the_middle_of_its_answer_is_a_hang(
    cutter: IsolatedCutter, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_SILENT_S", 0.3)
    monkeypatch.setattr(child.subprocess, "Popen", child_that("s.sendall(b'{'); os.kill(os.getpid(), 19)"))
    with pytest.raises(UndecodableVideo, match="not done after 120 s") as raised:
        cutter.cut(video)
    assert raised.value.cause == "timeout"
    assert cutter.pid is None


@pytest.mark.parametrize(
    "action",
    ["os.kill(os.getpid(), 11)", f"s.sendall({HALF_A_CLIP.encode()!r})"],
    ids=["segfault", "dies half-way through a clip"],
)
def test_a_crash_that_comes_back_is_the_files(
    action: str, cutter: IsolatedCutter, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child.subprocess, "Popen", child_that(action))
    began = time.monotonic()
    with pytest.raises(UndecodableVideo, match="ended twice") as raised:
        cutter.cut(video)
    assert raised.value.cause == "crash"
    assert time.monotonic() - began < 60
    assert cutter.pid is None


NOTHING = b'{"clips": [], "rejected": [], "source": {}}\n'


def test_what_earlier_rows_left_in_the_memory_of_the_decoder_costs_no_row(
    cutter: IsolatedCutter, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stand-in serves one row, and has no memory for its second one."""
    serves = f"s.sendall({NOTHING!r}); f.readline(); s.sendall(b'{{\"memory\": true}}\\n'); f.readline()"
    with monkeypatch.context() as patched:
        patched.setattr(child.subprocess, "Popen", child_that(serves))
        for _ in range(3):
            assert cutter.cut(video) == CutResult(clips=[], rejected=[], source={})
    always = "s.sendall(b'{\"memory\": true}\\n'); f.readline()"
    monkeypatch.setattr(child.subprocess, "Popen", child_that(always))
    with pytest.raises(UndecodableVideo, match=r"needs more than 3815 MiB to decode$") as raised:
        cutter.cut(video)
    assert raised.value.cause == "memory"


def test_a_decoder_that_has_no_memory_to_start_is_started_once(
    cutter: IsolatedCutter, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(child.subprocess, "Popen", child_that(2 * f"s.sendall({NOTHING!r}); f.readline();"))
        cutter.cut(video)
        cutter.cut(video)
    starts: list[int] = []

    def start(program: child.Program) -> child.Child:
        starts.append(program.memory_bytes or 0)
        raise MemoryError

    os.kill(pid_of(cutter), signal.SIGKILL)
    os.waitid(os.P_PID, pid_of(cutter), os.WEXITED | os.WNOWAIT)
    monkeypatch.setattr(child.Child, "start", start)
    with pytest.raises(UndecodableVideo, match="needs more than"):
        cutter.cut(video)
    assert starts == [4_000_000_000]

"""A row that kills, hangs or bloats its decoder costs that row only, and no process is left behind."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.cut import isolate
from data_pipeline.cut.config import ClipConfig, Codec, Crop
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.isolate import IsolatedCutter
from data_pipeline.cut.video import UndecodableVideo
from tests.data_pipeline.cut.videos import numbered_video, real_video, write_video

CONFIG = ClipConfig(crop=Crop.none, codec=Codec.mjpeg, max_seconds=6.0)  # not the defaults: they must arrive


@pytest.fixture(scope="module")
def cutter() -> Iterator[IsolatedCutter]:
    with IsolatedCutter(CONFIG, timeout_s=60, memory_bytes=2**30) as isolated:
        yield isolated


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_soon(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def stop_at_work(cutter: IsolatedCutter, number: int) -> threading.Thread:
    """Send a signal once the child has begun to work on the next row (its processor time grows)."""
    pid = cutter.pid
    assert pid is not None

    def ticks() -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])

    begin = ticks()

    def send() -> None:
        end = time.monotonic() + 60
        while ticks() < begin + 2 and time.monotonic() < end:
            time.sleep(0.001)
        os.kill(pid, number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_it_gives_what_cut_clips_gives(cutter: IsolatedCutter) -> None:
    path = real_video("bikes.mp4")
    assert cutter.cut(path, start=1.0, end=9.5) == cut_clips(path, start=1.0, end=9.5, config=CONFIG)


def test_an_undecodable_file_needs_no_new_process(cutter: IsolatedCutter, tmp_path: Path) -> None:
    good = numbered_video(tmp_path / "good.mp4", 60)
    reference = cutter.cut(good)
    pid = cutter.pid
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    with pytest.raises(UndecodableVideo, match=r"^bad\.mp4: cannot be opened") as caught:
        cutter.cut(bad)
    assert caught.value.cause == "undecodable"
    assert cutter.cut(good) == reference
    assert cutter.pid == pid


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_one_crash_costs_nothing(cutter: IsolatedCutter, number: signal.Signals) -> None:
    video = real_video("bigbuckbunny.mp4")
    reference = cutter.cut(video)
    pid = cutter.pid
    thread = stop_at_work(cutter, number)
    assert cutter.cut(video) == reference  # it may have been killed from outside, so it is tried once more
    thread.join()
    assert cutter.pid != pid


def test_a_file_that_crashes_its_decoder_costs_its_row_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = numbered_video(tmp_path / "good.mp4", 60)
    shutil.copy(good, tmp_path / "evil.mp4")
    # sitecustomize runs in the child before anything else: a decoder that is killed by one file
    (tmp_path / "sitecustomize.py").write_text(
        "import os, av\nopen_ = av.open\n"
        "def opened(file, *a, **k):\n"
        "    if 'evil' in str(file): os.kill(os.getpid(), 11)\n"
        "    return open_(file, *a, **k)\n"
        "av.open = opened\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with IsolatedCutter(ClipConfig(), timeout_s=60, memory_bytes=2**30) as cutter:
        reference = cutter.cut(good)
        with pytest.raises(UndecodableVideo, match=r"^evil\.mp4: .* ended twice: killed by SIGSEGV") as caught:
            cutter.cut(tmp_path / "evil.mp4")
        assert caught.value.cause == "crash"
        assert cutter.cut(good) == reference


def test_a_hang_costs_one_row_and_its_process_is_killed(tmp_path: Path) -> None:
    with IsolatedCutter(ClipConfig(), timeout_s=60, memory_bytes=2**30) as cutter:
        good = numbered_video(tmp_path / "good.mp4", 60)
        reference = cutter.cut(good)
        pid = cutter.pid
        assert pid is not None
        cutter.timeout_s = 1.0
        thread = stop_at_work(cutter, signal.SIGSTOP)
        with pytest.raises(UndecodableVideo, match="not done after 1 s") as caught:
            cutter.cut(real_video("bigbuckbunny.mp4"))
        thread.join()
        assert caught.value.cause == "timeout"
        assert not alive(pid)
        cutter.timeout_s = 60.0
        assert cutter.cut(good) == reference


def test_memory_is_limited_and_its_lack_named(tmp_path: Path) -> None:
    frame = av.VideoFrame.from_ndarray(np.full((4320 * 3 // 2, 7680), 100, np.uint8), format="yuv420p")
    huge = write_video(tmp_path / "8k.mp4", [frame] * 4, fps=8)
    config = ClipConfig(min_seconds=0.5, max_frozen=1.0, min_motion=0.0)
    good = numbered_video(tmp_path / "good.mp4", 60)
    with IsolatedCutter(config, timeout_s=60, memory_bytes=200 * 2**20) as cutter:
        reference = cutter.cut(good)
        pid = cutter.pid
        with pytest.raises(UndecodableVideo, match=r"8k\.mp4: needs more than 200 MiB") as caught:
            cutter.cut(huge)
        assert caught.value.cause == "memory"
        assert cutter.cut(good) == reference
        assert cutter.pid != pid
    with IsolatedCutter(config, timeout_s=60, memory_bytes=2**30) as cutter:
        result = cutter.cut(huge)  # 7680 x 4320
        assert result.source["width"] == 7680
        assert [clip.frames for clip in result.clips] == [4]


@pytest.mark.parametrize(
    ("allowed", "extra", "limit"),
    [(resource.RLIM_INFINITY, 2**64, sys.maxsize), (2**33, 2**35, 2**33), (2**45, 0, None)],
    ids=["more than a number of C holds", "more than the job was given", "less"],
)
def test_the_limit_of_memory_is_one_that_the_system_takes(
    allowed: int, extra: int, limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only root may set a higher limit than there is, such as one of `ulimit -v` or of a queue."""
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (allowed, allowed))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: given.append(limits))
    isolate._limit_memory(extra)
    ((soft, hard),) = given
    assert soft == hard == (limit or soft)
    assert 0 < soft <= sys.maxsize


PARENT = """
import sys, time
from data_pipeline.cut.cutter import ClipConfig
from data_pipeline.cut.isolate import IsolatedCutter
cutter = IsolatedCutter(ClipConfig(), timeout_s=60, memory_bytes=2**30)
cutter.cut(sys.argv[1])
print(cutter.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_dies_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    video = numbered_video(tmp_path / "v.mp4", 30)
    with subprocess.Popen([sys.executable, "-c", PARENT, video], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        os.kill(child, signal.SIGSTOP)  # not even a stopped one stays
        parent.send_signal(number)
    assert gone_soon(child)


def test_the_child_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    # The kernel's parent-death signal follows the thread that forked, not the process.
    video = numbered_video(tmp_path / "v.mp4", 60)
    with IsolatedCutter(ClipConfig(), timeout_s=60, memory_bytes=2**30) as cutter:
        with ThreadPoolExecutor(max_workers=1) as pool:
            first = pool.submit(cutter.cut, video).result()
        pid = cutter.pid
        assert cutter.cut(video) == first
        assert cutter.pid == pid


def test_close_leaves_no_process(tmp_path: Path) -> None:
    cutter = IsolatedCutter(ClipConfig(), timeout_s=60, memory_bytes=2**30)
    cutter.cut(numbered_video(tmp_path / "v.mp4", 30))
    pid = cutter.pid
    assert pid is not None
    cutter.close()
    assert not alive(pid)
    assert cutter.pid is None

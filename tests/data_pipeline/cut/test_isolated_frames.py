"""Frames from a child process are those of this process, and a decoder that dies costs one video."""

from __future__ import annotations

import os
import select
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.cut import isolated_frames
from data_pipeline.cut.frames import Break, break_text, open_frames
from data_pipeline.cut.isolated_frames import IsolatedFrames
from data_pipeline.cut.video import UndecodableVideo
from tests.data_pipeline.cut.videos import numbered_video, real_video
from tests.tools.memory_limit import memory_limit

Shown = tuple[int, float, NDArray[np.uint8]] | Break


@pytest.fixture(scope="module")
def child() -> Iterator[IsolatedFrames]:
    isolated = IsolatedFrames()
    yield isolated
    isolated.close()


def seen(isolated: IsolatedFrames | None, path: Path, interval: int = 1) -> list[Shown]:
    """All frames and breaks, decoded by the child, or without one in this process."""
    with (open_frames if isolated is None else isolated.open)(path) as reader:
        return [
            event if isinstance(event, Break) else (event.number, event.time, event.picture)
            for event in reader.frames(interval, np.copy)
        ]


def same(first: list[Shown], second: list[Shown]) -> bool:
    return len(first) == len(second) and all(
        a == b if isinstance(a, Break) or isinstance(b, Break) else a[:2] == b[:2] and np.array_equal(a[2], b[2])
        for a, b in zip(first, second, strict=True)
    )


def damaged(path: Path) -> Path:
    """A real video whose middle is overwritten."""
    data = bytearray(real_video("carphone_pristine.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("interval", [1, 3])
def test_the_child_gives_what_this_process_gives(child: IsolatedFrames, tmp_path: Path, interval: int) -> None:
    for path in (
        real_video("carphone_pristine.mp4"),
        damaged(tmp_path / "d.mp4"),
        numbered_video(tmp_path / "n.mp4", 30),
    ):
        expected = seen(None, path, interval)
        assert same(seen(child, path, interval), expected)
        assert len(expected) > 5


def test_a_file_that_cannot_be_read_is_refused_in_the_same_words_and_the_next_one_is_read(
    child: IsolatedFrames, tmp_path: Path
) -> None:
    good, bad = numbered_video(tmp_path / "good.mp4", 20), tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    with pytest.raises(UndecodableVideo) as ours, open_frames(bad):
        pass
    with pytest.raises(UndecodableVideo) as theirs, child.open(bad):
        pass
    assert (str(theirs.value), theirs.value.cause) == (str(ours.value), ours.value.cause)
    assert same(seen(child, good), seen(None, good))


def test_who_stops_early_keeps_the_child(child: IsolatedFrames, tmp_path: Path) -> None:
    good = numbered_video(tmp_path / "good.mp4", 60)
    expected = seen(child, good)
    pid = child.pid
    with child.open(good) as reader:
        next(reader.frames(1, np.copy))
    with child.open(good):
        pass
    assert same(seen(child, good), expected)
    assert child.pid == pid


def test_a_decoder_that_crashes_costs_the_rest_of_its_video(child: IsolatedFrames, tmp_path: Path) -> None:
    got: list[object] = []

    def read() -> None:
        with child.open(real_video("bigbuckbunny.mp4")) as reader:
            for event in reader.frames(1, lambda pixels: pixels.shape):
                got.append(event)
                if len(got) == 3:
                    assert child.pid is not None
                    os.kill(child.pid, signal.SIGSEGV)

    with pytest.raises(UndecodableVideo, match=r"^bigbuckbunny\.mp4: .* ended: killed by SIGSEGV$") as raised:
        read()
    assert raised.value.cause == "crash"
    assert 3 <= len(got) < 132
    good = numbered_video(tmp_path / "good.mp4", 20)
    assert same(seen(child, good), seen(None, good))


def test_a_decoder_that_dies_between_two_videos_costs_none_and_is_renewed_after_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated_frames, "_VIDEOS", 2)
    isolated, good = IsolatedFrames(), numbered_video(tmp_path / "good.mp4", 20)
    expected, pids = seen(None, good), []
    for _ in range(3):
        assert same(seen(isolated, good), expected)
        pids.append(isolated.pid)
    assert pids[0] == pids[1] != pids[2]
    assert isolated.pid is not None
    os.kill(isolated.pid, signal.SIGKILL)
    os.waitid(os.P_PID, isolated.pid, os.WEXITED | os.WNOWAIT)
    assert same(seen(isolated, good), expected)
    isolated.close()


def test_what_was_decoded_before_a_crash_counts_however_slow_the_reader_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child dies of its 49th picture, two pictures ahead of the reader, which then waits for the child's end."""
    # sitecustomize runs in the decoder's process before anything else
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom data_pipeline.cut.geometry import RgbPictures\nshow = RgbPictures.__call__\ncount = 0\n"
        "def shown(self, frame):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 49: os.abort()\n"
        "    return show(self, frame)\n"
        "RgbPictures.__call__ = shown\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    isolated, taken = IsolatedFrames(), []

    def take(pixels: NDArray[np.uint8]) -> int:
        taken.append(pixels.sum())
        if len(taken) == 47:
            assert isolated.pid is not None
            ending = os.pidfd_open(isolated.pid)
            assert select.select([ending], [], [], 60)[0]
            os.close(ending)
        return len(taken)

    def read() -> None:
        with isolated.open(numbered_video(tmp_path / "v.mp4", 60)) as reader:
            for _ in reader.frames(1, take):
                pass

    with pytest.raises(UndecodableVideo, match="ended: killed by SIGABRT"):
        read()
    assert len(taken) == 48


class Taken:
    """Stands for what somebody makes of a picture."""


def test_an_error_near_the_end_of_a_long_video_brings_no_pictures_back(child: IsolatedFrames, tmp_path: Path) -> None:
    """After an error all frames are decoded once more; who has taken 80 of them already holds none of those again."""
    path = numbered_video(tmp_path / "v.mp4", 100, options={"g": "10", "crf": "8"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][95]
    data, begin = bytearray(path.read_bytes()), (packet.pos or 0) + 4
    data[begin : begin + packet.size - 6] = bytes(packet.size - 6)
    path.write_bytes(data)
    expected = seen(None, path)
    alive: weakref.WeakSet[Taken] = weakref.WeakSet()
    most: list[int] = []

    def take(pixels: NDArray[np.uint8]) -> Taken:
        alive.add(taken := Taken())
        most.append(len(alive))
        return taken

    with child.open(path) as reader:
        numbers = [event.number for event in reader.frames(1, take) if not isinstance(event, Break)]
    assert numbers == [event[0] for event in expected if not isinstance(event, Break)]
    assert len(expected) - 1 == len(numbers) == 79, "packet 95, and the 16 frames before it"
    assert max(most) < 50
    assert len(most) < 130


def test_raw_pictures_lose_only_the_one_that_is_cut(child: IsolatedFrames, tmp_path: Path) -> None:
    """64 x 48 pixels in 4:2:0 are 4608 bytes a picture: 20 pictures and 100 bytes."""
    path = tmp_path / "cut_64x48_25.yuv"
    path.write_bytes(b"".join(bytes([10 * number]) * 4608 for number in range(20)) + bytes(100))
    *pictures, last = seen(child, path)
    assert len(pictures) == 20
    assert isinstance(last, Break)
    assert break_text(last) == "0.80 to 0.84 s: truncated (error the file ends within a frame)"


def test_a_picture_for_which_this_process_has_no_memory_costs_its_video(child: IsolatedFrames, tmp_path: Path) -> None:
    """The places for pictures of 4096 x 4096 have 144 MB."""
    path, good = tmp_path / "large_4096x4096_25.yuv", numbered_video(tmp_path / "good.mp4", 20)
    path.write_bytes(bytes(2 * 4096 * 4096 * 3 // 2))
    expected = seen(child, good)
    with memory_limit(64 * 2**20), pytest.raises(UndecodableVideo, match="needs more memory") as raised:
        seen(child, path)
    assert raised.value.cause == "memory"
    assert same(seen(child, good), expected)

"""Downloads beside the cutter: how many at once, how much disk, whose error."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from data_pipeline.build.prefetch import Fetched, Prefetcher, VideoRun, video_runs
from data_pipeline.build.scratch import ScratchRoom, scratch_folder
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.store.base import StoreError

BYTES = 2_000_000


def row(number: int, video: str) -> PlanRow:
    return PlanRow(
        row=number, id=str(number), video=video, caption="c", start=None, end=None, label="", split="", extra=""
    )


def runs_of(videos: list[str]) -> list[VideoRun]:
    return video_runs([row(number, video) for number, video in enumerate(videos, 1)], lambda _: False)


class Web(Sources):
    """Videos `http://host/<name>` of a given size. Says what is fetched at once and how much lies on the disk."""

    def __init__(self, sizes: dict[str, int], together: int = 1) -> None:
        super().__init__("", SourcesConfig(max_bytes=50_000_000))
        self.sizes = sizes
        self.meeting = threading.Barrier(together)  # so many downloads wait for each other
        self.asked: list[tuple[str, int | None]] = []

    def fetch(self, video: str, folder: Path, most: int | None = None) -> Path:
        name = video.rpartition("/")[2]
        self.asked.append((name, most))
        if name == "down":
            raise StoreError("the store is down")
        if name == "missing":
            raise SourceProblem("missing", "is not there")
        if self.sizes[name] > (self.config.max_bytes if most is None else most):
            raise SourceProblem("too_large", "is too large")
        self.meeting.wait(30)
        path = folder / f"source-{name}"
        with path.open("wb") as file:
            file.truncate(self.sizes[name])
        return path


def fetched(prefetcher: Prefetcher, names: str) -> list[Fetched]:
    """What is fetched for videos of one letter each; each is removed when the next one is asked for."""
    found = []
    with closing(prefetcher.fetched(runs_of([f"http://host/{name}" for name in names]))) as videos:
        for _, video in videos:
            found.append(video)
            if isinstance(video, Path):
                video.unlink()
    return found


def test_several_are_fetched_at_once_and_come_in_order(tmp_path: Path) -> None:
    """No download of three ends before the two others have begun."""
    web = Web(dict.fromkeys("abcdef", BYTES), together=3)
    prefetcher = Prefetcher(web, tmp_path, 3, ScratchRoom(tmp_path, 1_000_000_000))
    found = fetched(prefetcher, "abcdef")
    assert [video.name for video in found if isinstance(video, Path)] == [f"source-{name}" for name in "abcdef"]


@pytest.mark.parametrize("limit", [0, 8_000_000, 30_000_000])
@pytest.mark.parametrize("downloads", [0, 1, 4])
def test_what_waits_keeps_within_the_room(tmp_path: Path, limit: int, downloads: int) -> None:
    sizes = {name: BYTES * (1 + 3 * (number % 3)) for number, name in enumerate("abcdefghij")}
    room = ScratchRoom(tmp_path, limit)
    prefetcher = Prefetcher(Web(sizes), tmp_path, downloads, room)
    order = []
    with closing(prefetcher.fetched(runs_of([f"http://host/{name}" for name in sizes]))) as videos:
        for run, video in videos:
            assert isinstance(video, Path)
            order.append(run.rows[0].video[-1])
            waiting = [path.stat().st_size for path in tmp_path.glob("source-*") if path != video]
            assert sum(waiting) <= limit
            assert len(waiting) <= downloads
            video.unlink()
    assert order == list(sizes)
    assert room.used() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_video_too_large_to_wait_is_fetched_when_it_is_needed(tmp_path: Path) -> None:
    web = Web({"a": BYTES, "b": 20 * BYTES, "c": 30 * BYTES})
    prefetcher = Prefetcher(web, tmp_path, 2, ScratchRoom(tmp_path, 10 * BYTES))
    one, two, three = fetched(prefetcher, "abc")
    assert isinstance(one, Path)
    assert isinstance(two, Path), "it is larger than the room, and smaller than sources.max_bytes"
    assert isinstance(three, SourceProblem)
    assert three.error == "too_large"
    assert [name for name, most in web.asked if most is None] == ["b", "c"]


def test_an_error_ahead_is_told_with_its_own_rows(tmp_path: Path) -> None:
    web = Web({"a": BYTES})
    prefetcher = Prefetcher(web, tmp_path, 4, ScratchRoom(tmp_path, 1_000_000_000))
    runs = runs_of(["http://host/a", "http://host/missing", "http://host/down", "http://host/a"])
    with closing(prefetcher.fetched(runs)) as videos:
        found = [video for _, video in videos]
    assert isinstance(found[0], Path)
    assert isinstance(found[1], SourceProblem)
    assert isinstance(found[2], StoreError)


def test_downloads_in_work_end_before_the_folder_goes(tmp_path: Path) -> None:
    web = Web(dict.fromkeys("abcdef", BYTES))
    with scratch_folder(str(tmp_path)) as folder:
        prefetcher = Prefetcher(web, folder, 2, ScratchRoom(folder, 1_000_000_000))
        with closing(prefetcher.fetched(runs_of([f"http://host/{name}" for name in "abcdef"]))) as videos:
            next(videos)
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


_OTHER = """
import sys
from data_pipeline.build.scratch import ScratchRoom, scratch_folder
with scratch_folder(sys.argv[1]) as folder:
    (folder / "source-x").open("wb").truncate(6_000_000)
    with ScratchRoom(folder, 20_000_000).ahead() as most:
        print(most, flush=True)
        sys.stdin.read()
"""


def test_processes_of_one_machine_share_the_room(tmp_path: Path) -> None:
    with scratch_folder(str(tmp_path)) as folder:
        command = [sys.executable, "-c", _OTHER, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert int(other.stdout.readline()) == 7_000_000, "half of 20 - 6 million"
            room = ScratchRoom(folder, 20_000_000)
            assert room.used() == 13_000_000
            with room.ahead() as most:
                assert most == 3_500_000
            other.communicate(timeout=30)
        assert room.used() == 0

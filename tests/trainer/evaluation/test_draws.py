"""Clips that are drawn: neighbouring frames, every place alike, and the same ones however they are read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.data_pipeline.cut.videos import numbered_video, read_number
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.evaluation.conftest import MakeRamp
from trainer.evaluation import sources
from trainer.evaluation.draws import Draw, drawn_start
from trainer.evaluation.found_videos import find_videos
from trainer.evaluation.shard_source import ShardSource
from trainer.evaluation.sources import Totals, VideoFiles, Window


def test_every_place_is_drawn_equally_often() -> None:
    """Two stretches have 3 and 2 places for four frames: chi-squared of 10,000 draws is below its 0.1 % bound, 18.5."""
    stretches = [range(0, 6), range(6, 9), range(20, 25)]
    drawn = Counter(drawn_start(Draw(1, 0), f"{number}.mp4", stretches, 4) for number in range(10_000))
    assert sorted(drawn) == [0, 1, 2, 20, 21]
    assert sum((count - 2000) ** 2 / 2000 for count in drawn.values()) < 18.5


def test_the_place_follows_from_seed_and_name_alone() -> None:
    places = [[drawn_start(Draw(1, seed), f"{n}.mp4", [range(1000)], 16) for n in range(50)] for seed in (0, 0, 1)]
    assert places[0] == places[1]
    assert places[0] != places[2]
    assert drawn_start(Draw(1, 0), "short.mp4", [range(15), range(20, 35)], 16) is None


def numbers(window: Window) -> list[int]:
    """The numbers that the frames show: frame k is grey, of value 4 k."""
    return [round(value.item() * 255 / 4) for value in window.video.mean(dim=(0, 2, 3))]


def test_of_each_of_the_first_videos_one_clip_of_neighbouring_frames_is_read(
    tmp_path: Path, grey_ramp: MakeRamp
) -> None:
    for name, frames, fps in (("a", 40, 25), ("b", 30, 60), ("c", 6, 25), ("d", 5, 25), ("e", 40, 25)):
        grey_ramp(tmp_path / f"{name}.mp4", frames, fps)
    source = VideoFiles(find_videos(tmp_path), frames=6, size=16, interval=1, draw=Draw(4, seed=3))
    windows = list(source.windows())
    assert [window.source for window in windows] == ["a.mp4", "b.mp4", "c.mp4"]
    for window in windows:
        assert numbers(window) == list(range(window.start, window.start + 6))
    assert windows[2].start == 0
    assert source.totals.failed == [("d.mp4", "shorter than one window of 6 sampled frames")]
    last = source.parts()[1]
    (again,) = source.read(last, Totals())
    source.close()
    assert torch.equal(again.video, windows[1].video)


def test_no_drawn_window_reaches_across_damage_which_is_named(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mkv", 60, fps=25, options={"g": "10", "crf": "8"})
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    for seed in range(3):
        source = VideoFiles(find_videos(path), frames=8, size=128, interval=1, draw=Draw(1, seed))
        (window,) = source.windows()
        shown = [read_number((frame * 255).byte().permute(1, 2, 0).numpy()) for frame in window.video.unbind(1)]
        assert shown == list(range(window.start, window.start + 8))
        ((name, reason),) = source.totals.failed
        assert name == "v.mkv"
        assert "damaged" in reason


def test_a_video_that_another_program_shortens_meanwhile_is_named(
    tmp_path: Path, grey_ramp: MakeRamp, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = grey_ramp(tmp_path / "a.mp4", 40, 25)
    grey_ramp(tmp_path / "b.mp4", 12, 25)

    def drawn_meanwhile(draw: Draw, name: str, stretches: list[range], frames: int) -> int | None:
        if name == "a.mp4":
            grey_ramp(path, 8, 25)
        return drawn_start(draw, name, stretches, frames)

    monkeypatch.setattr(sources, "drawn_start", drawn_meanwhile)
    source = VideoFiles(find_videos(tmp_path), frames=6, size=16, interval=1, draw=Draw(2, seed=1))
    assert [window.source for window in source.windows()] == ["b.mp4"]
    ((name, reason),) = source.totals.failed
    assert name == "a.mp4"
    assert reason.startswith("gave fewer frames when it was read again")


def test_of_each_of_the_first_stored_clips_one_window_is_read(tmp_path: Path) -> None:
    clips = make_clips(7, frames=(3, 9, 14), split="val")
    data = write_dataset(tmp_path / "data", split_into_shards(clips, [4]))
    frames = {clip.key: clip.frames for clip in clips}
    source = ShardSource(str(data), "val", frames=4, size=32, draw=Draw(3, seed=0))
    drawn = list(source.windows())
    assert len({window.source for window in drawn}) == len(drawn) == len(source) == 3
    assert all(0 <= window.start <= frames[window.source] - 4 for window in drawn)

    def places(draw: Draw) -> list[list[int]]:
        """Row and first frame of each window, as the identity of the one part has them."""
        (part,) = ShardSource(str(data), "val", frames=4, size=32, draw=draw).parts()
        found: list[list[int]] = json.loads(part.identity)[2]
        return found

    assert [start for _, start in places(Draw(3, 0))] == [window.start for window in drawn]
    every = [places(Draw(9, seed)) for seed in range(4)]
    assert {tuple(row for row, _ in some) for some in every} == {tuple(row for row, _ in every[0])}
    assert len(every[0]) == sum(count > 3 for count in frames.values())
    assert [row for row, _ in every[0]][:3] == [row for row, _ in places(Draw(3, 0))]
    assert len({tuple(start for _, start in some) for some in every}) > 1

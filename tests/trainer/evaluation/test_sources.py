"""Windows of video files: which frames, at which interval, and what is left out."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import av
import pytest
import torch

from tests.data_pipeline.cut.videos import numbered_video, read_number, write_video
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.data_pipeline.read.loading import break_samples, zero_video
from tests.trainer.evaluation.conftest import MakeRamp
from trainer.evaluation.found_videos import find_videos
from trainer.evaluation.shard_source import ShardSource
from trainer.evaluation.sources import VideoFiles, sampling_interval

KINDS = {"y4m": "rawvideo", "ts": "mpeg2video", "flv": "flv", "wmv": "wmv2", "avi": "mpeg4", "mkv": "libx264"}
KINDS |= {"mov": "mpeg4", "m2ts": "mpeg2video", "mpg": "mpeg2video"}
"""Ending of the file, and a codec that its container takes."""


def numbers(video: torch.Tensor, step: int = 4) -> list[int]:
    return [round(value.item() * 255 / step) for value in video.mean(dim=(0, 2, 3))]


@pytest.mark.parametrize(
    ("fps", "interval"), [(8, 1), (12.5, 1), (24, 1), (29.97, 1), (37, 1), (50, 2), (60, 2), (120, 5)]
)
def test_interval_is_that_of_the_official_evaluation(fps: float, interval: int) -> None:
    assert sampling_interval(fps) == interval


def test_windows_do_not_overlap_and_the_rest_is_counted(tmp_path: Path, grey_ramp: MakeRamp) -> None:
    grey_ramp(tmp_path / "a.mp4", 43, 50)  # 22 sampled frames: two windows of 8 and six frames over
    source = VideoFiles(find_videos(tmp_path), frames=8, size=32)
    windows = list(source.windows())
    assert [numbers(window.video) for window in windows] == [list(range(0, 16, 2)), list(range(16, 32, 2))]
    assert [(window.start, window.interval, window.fps) for window in windows] == [(0, 2, 25.0), (16, 2, 25.0)]
    assert windows[0].video.shape == (3, 8, 32, 32)
    assert (source.totals.sources, source.totals.windows, source.totals.left_out_frames) == (1, 2, 6)


def test_what_cannot_be_measured_is_named_and_the_others_go_on(tmp_path: Path, grey_ramp: MakeRamp) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    grey_ramp(tmp_path / "short.mp4", 5, 25)
    (tmp_path / "sub").mkdir()
    grey_ramp(tmp_path / "sub" / "whole.mp4", 20, 25)
    source = VideoFiles(find_videos(tmp_path), frames=8, size=16, max_windows=1)
    assert [window.source for window in source.windows()] == ["sub/whole.mp4"]
    reasons = dict(source.totals.failed)
    assert "cannot be opened" in reasons["broken.mp4"]
    assert reasons["short.mp4"] == "shorter than one window of 8 sampled frames"


def test_an_empty_list_is_refused(tmp_path: Path, grey_ramp: MakeRamp) -> None:
    grey_ramp(tmp_path / "a.mp4", 20, 25)
    (tmp_path / "list.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"list\.txt names no video; write the path of a video below"):
        find_videos(tmp_path, tmp_path / "list.txt")


def test_a_video_that_crashes_its_decoder_is_named_and_the_others_go_on(
    tmp_path: Path, grey_ramp: MakeRamp, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.mp4", "evil.mp4", "z.mp4"):
        grey_ramp(tmp_path / name, 20, 25)
    # sitecustomize runs in the decoder's process before anything else
    (tmp_path / "sitecustomize.py").write_text(
        "import os, av\nopen_ = av.open\n"
        "def opened(file, *a, **k):\n"
        "    if 'evil' in str(file): os.abort()\n"
        "    return open_(file, *a, **k)\n"
        "av.open = opened\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source = VideoFiles(find_videos(tmp_path), frames=8, size=16)
    assert [window.source for window in source.windows()] == ["a.mp4"] * 2 + ["z.mp4"] * 2
    assert source.totals.failed == [("evil.mp4", "the decoder's process ended: killed by SIGABRT")]


def test_a_decoder_that_cannot_start_is_trouble_of_the_machine_and_not_of_a_video(
    tmp_path: Path, grey_ramp: MakeRamp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts end with one line for it, as for every OSError."""
    grey_ramp(tmp_path / "a.mp4", 20, 25)
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = VideoFiles(find_videos(tmp_path), frames=8, size=16)
    with pytest.raises(OSError, match=r"^the decoder's process did not start: exit status 7$"):
        list(source.windows())
    assert source.totals.failed == []


def test_of_shards_the_split_is_counted_and_what_is_unreadable_named(tmp_path: Path) -> None:
    """Held-out clips of 9, 14 and 9 frames: seven windows of 4 frames, and four frames left over."""
    clips = make_clips(5, frames=(11,)) + make_clips(3, frames=(9, 14), split="val")
    data = write_dataset(tmp_path / "data", split_into_shards(clips, [4]))
    source = ShardSource(str(data), "val", frames=4, size=32)
    windows = list(source.windows())
    assert [window.start for window in windows] == [0, 4, 0, 4, 8, 0, 4]
    totals = source.totals
    assert (totals.sources, totals.windows, totals.left_out_frames, totals.failed) == (3, 7, 1 + 2 + 1, [])
    (key,) = break_samples(data, [6], zero_video)
    source = ShardSource(str(data), "val", frames=4, size=32)
    assert {window.source for window in source.windows()} == {window.source for window in windows} - {key}
    assert {name for name, _ in source.totals.failed} == {key}


def test_a_clip_that_crashes_its_decoder_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = make_clips(4, frames=(4,)) + make_clips(3, frames=(4,), split="val")
    data = write_dataset(tmp_path / "data", split_into_shards(clips, [2]))

    def poison(shard: bytearray, sample: dict[str, int]) -> None:
        end = sample["video_offset"] + sample["video_size"]
        shard[end - 4 : end] = b"EVIL"

    (key,) = break_samples(data, [5], poison)
    # sitecustomize runs in the decoder's process before anything else
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nimport data_pipeline.read.clip_decoder as decoder\nread = decoder.read_packet_table\n"
        "def table(data):\n"
        "    if data.endswith(b'EVIL'): os.abort()\n"
        "    return read(data)\n"
        "decoder.read_packet_table = table\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source = ShardSource(str(data), "val", frames=4, size=32)
    found = [window.source for window in source.windows()]
    assert len(found) == 2
    assert key not in found
    assert source.totals.failed == [(key, "ClipError: the decoder's process ended: killed by SIGABRT")]


def test_a_list_file_chooses_and_may_carry_class_numbers(tmp_path: Path) -> None:
    (tmp_path / "Archery").mkdir()
    for name in ("v1.avi", "v2.avi"):
        (tmp_path / "Archery" / name).write_bytes(b"")
    listing = tmp_path / "trainlist01.txt"
    listing.write_text("Archery/v2.avi 3\n\n")
    assert [name for name, _ in find_videos(tmp_path, listing)] == ["Archery/v2.avi"]
    listing.write_text("Archery/v9.avi 3\n")
    with pytest.raises(ValueError, match=r"Archery/v9\.avi"):
        find_videos(tmp_path, listing)
    (tmp_path / "Archery" / "my video.avi").write_bytes(b"")
    listing.write_text("Archery/my video.avi\nArchery/v1.avi\n")
    assert [name for name, _ in find_videos(tmp_path, listing)] == ["Archery/my video.avi", "Archery/v1.avi"]


def test_what_is_neither_a_file_nor_a_folder_is_refused_as_such(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a\.mp4 is neither a file nor a folder"):
        find_videos(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"b\.mp4 does not exist"):
        find_videos(tmp_path / "b.mp4")


def test_every_kind_of_file_that_a_build_takes_is_measured_or_named(tmp_path: Path, grey_ramp: MakeRamp) -> None:
    """One clip in eleven kinds of files; what is not named like a video is counted."""
    grey_ramp(tmp_path / "a.mp4", 10, 25)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for suffix, codec in KINDS.items():
        write_video(tmp_path / f"a.{suffix}", frames, codec=codec, options={})
    raw = [av.VideoFrame.from_ndarray(f, format="rgb24").to_ndarray(format="yuv420p").tobytes() for f in frames]
    (tmp_path / "a_64x48_25.yuv").write_bytes(b"".join(raw))
    (tmp_path / "bad.yuv").write_bytes(b"".join(raw))
    (tmp_path / "film.divx").write_bytes(b"")
    (tmp_path / "._a.mp4").write_bytes(b"")
    source = VideoFiles(find_videos(tmp_path), frames=4, size=16)
    counts = Counter(window.source for window in source.windows())
    assert counts == dict.fromkeys(["a.mp4", "a_64x48_25.yuv", *(f"a.{suffix}" for suffix in KINDS)], 2)
    ((name, reason),) = source.totals.failed
    assert name == "bad.yuv"
    assert "must be named <name>_<width>x<height>_<fps>.yuv" in reason
    assert source.totals.remarks == [
        f"{tmp_path}: {len(counts) + 1} videos found; files left out that are not named like a video: 1 (.divx 1), a "
        "manifest can name them all the same; hidden files left out: 1"
    ]


def test_no_window_reaches_across_damage_which_is_named(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mkv", 60, fps=25, options={"g": "10", "crf": "8"})
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    path.write_bytes(data)
    source = VideoFiles(find_videos(path), frames=4, size=128)
    taken = [
        [read_number((frame * 255).byte().permute(1, 2, 0).numpy()) for frame in window.video.unbind(1)]
        for window in source.windows()
    ]
    assert all(window == list(range(window[0], window[0] + 4)) for window in taken)
    assert 5 <= len(taken) < 15
    ((name, reason),) = source.totals.failed
    assert name == "v.mkv"
    assert re.fullmatch(r"\d\.\d\d to \d\.\d\d s: damaged \(error .*\)", reason)

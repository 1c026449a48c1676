import os
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cut_detector import SIDE, CutDetector, Thumbnails
from data_pipeline.cut.cutter import cut_clips
from tests.data_pipeline.cut.videos import numbers, picture, real_video, write_video


def cuts_of(thumbnails: list[np.ndarray]) -> list[int]:
    detector = CutDetector(8, ratio=3.0, change=15.0)
    cuts = [cut for thumbnail in thumbnails for cut in detector.add(thumbnail)]
    return cuts + detector.flush()


def shot(scene: int, count: int, speed: int = 1) -> list[np.ndarray]:
    return [picture(n * speed, SIDE, SIDE, scene)[..., ::-1].copy() for n in range(count)]


@pytest.mark.parametrize("at", [1, 2, 3, 10, 17, 18, 19])
def test_a_cut_is_found_wherever_it_is(at: int) -> None:
    assert cuts_of(shot(1, at) + shot(2, 20 - at)) == [at]


def test_motion_alone_is_no_cut() -> None:
    assert cuts_of(shot(3, 40, speed=6)) == []
    assert cuts_of(shot(3, 1)) == []
    assert cuts_of([]) == []


@pytest.mark.parametrize(
    ("levels", "cuts"),
    [
        # grey pictures, whose change is a third of the step; each stands against the mean of two before and two after
        ([0, 0, 0, 60, 66, 156, 150, 90, 90, 90], []),  # 20, 2, 30, 2, 20: 30 is 2.7 times 11
        ([0, 0, 0, 0, 6, 96, 90, 90, 90, 90], [5]),  # 0, 2, 30, 2, 0: 30 times 1
        ([0, 0, 0, 0, 0, 42, 42, 42, 42, 42], []),  # 14 is less than `change`
        ([0, 0, 0, 0, 0, 48, 48, 48, 48, 48], [5]),  # 16
    ],
)
def test_a_cut_stands_out_against_two_changes_on_each_side(levels: list[int], cuts: list[int]) -> None:
    assert cuts_of([np.full((SIDE, SIDE, 3), level, np.uint8) for level in levels]) == cuts


def test_several_cuts_come_in_order_and_at_most_two_thumbnails_late() -> None:
    detector = CutDetector(8, ratio=3.0, change=15.0)
    cuts = []
    for number, thumbnail in enumerate(shot(1, 8) + shot(2, 9) + shot(4, 8)):
        for cut in detector.add(thumbnail):
            cuts.append(cut)
            assert number - cut <= 2
    assert cuts == [8, 17]


def test_the_change_is_the_mean_difference_of_hue_saturation_and_value() -> None:
    """By its definition. The score is a private part of PySceneDetect, and a release that renames it fails here."""
    detector = CutDetector(8, ratio=3.0, change=15.0)
    pair = shot(1, 1) + shot(2, 1)
    detector.add(pair[0])
    assert detector.change == 0.0
    detector.add(pair[1])
    before, after = (cv2.cvtColor(thumbnail, cv2.COLOR_BGR2HSV).astype(float) for thumbnail in pair)
    assert detector.change == pytest.approx(np.abs(before - after).mean())
    assert detector.change > 15.0


def test_thumbnails_are_area_averages() -> None:
    frame = av.VideoFrame.from_ndarray(picture(5, 256, 256), format="rgb24").reformat(format="yuv420p")
    blocks = picture(5, 256, 256).reshape(SIDE, 4, SIDE, 4, 3).mean(axis=(1, 3))
    assert np.abs(Thumbnails()(frame)[..., ::-1].astype(float) - blocks).mean() < 2.0


def test_clips_end_at_a_hand_made_cut(tmp_path: Path) -> None:
    # 25 fps: frame 76 (3.04 s) is the first of the second scene; frames carry their number
    images = [picture(n, scene=7 if n < 76 else 8) for n in range(152)]
    result = cut_clips(write_video(tmp_path / "cut.mp4", images), config=ClipConfig())
    first, second = result.clips
    assert first.start == 0.0
    assert first.end <= 3.04 + 1e-9
    assert max(numbers(first.data)) < 76 <= min(numbers(second.data))
    assert second.start == pytest.approx(3.125)
    assert (first.frames, second.frames) == (25, 24)


def test_the_four_cuts_of_a_real_video_are_the_ones_ffmpeg_sees() -> None:
    path = real_video("bikes.mp4")
    command = ["ffmpeg", "-nostdin", "-i", str(path), "-vf", "select='gt(scene,0.35)',showinfo", "-f", "null", "-"]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    cuts = [float(line.split("pts_time:")[1].split()[0]) for line in log.splitlines() if "pts_time:" in line]
    assert len(cuts) == 4
    result = cut_clips(path, config=ClipConfig())
    spans = sorted((item.start, item.end) for item in [*result.clips, *result.rejected])
    assert len(spans) == 5
    for cut, before, after in zip(cuts, spans, spans[1:], strict=False):
        assert before[1] <= cut + 1e-6 <= after[0] + 2e-6  # the cut lies in the gap between two candidates
        assert after[0] - cut < 1 / 8


def test_no_program_is_started_by_the_import(tmp_path: Path) -> None:
    """PySceneDetect by itself starts the first `ffmpeg` of the PATH."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\necho started >> {tmp_path}/log\n")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    code = "import data_pipeline.cut.cut_detector, os; print(os.environ['PATH'])"
    for module in (code, "import scenedetect"):
        command = [sys.executable, "-c", module]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        assert (tmp_path / "log").exists() == (module != code), module
        assert done.stdout.strip() == (environment["PATH"] if module == code else "")

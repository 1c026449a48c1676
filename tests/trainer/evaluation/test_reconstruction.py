"""Videos of any length: every frame once, in order, at the right rate, whatever the number of windows."""

from __future__ import annotations

import copy
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.outputs import VIDEOS
from model.vidtwin import VidTwin
from tests.tools.frames import open_frames
from tests.trainer.evaluation.conftest import MakeRamp
from trainer.evaluation.metrics import reconstruct
from trainer.evaluation.reconstruction import covering_windows, mix, reconstruct_video, reenact


@pytest.mark.parametrize("length", range(4, 14))
def test_windows_cover_every_frame_once(length: int) -> None:
    windows = list(covering_windows(range(length), 4, []))
    assert [frame for window, new in windows for frame in window[-new:]] == list(range(length))
    assert all(window == list(range(window[0], window[0] + 4)) for window, _ in windows)


def test_fewer_frames_than_a_window_are_refused() -> None:
    with pytest.raises(ValueError, match=r"only 3 frames, but the model needs windows of 4$"):
        list(covering_windows(range(3), 4, []))


@pytest.mark.parametrize(("frames", "fps", "interval", "batch"), [(11, 25, None, 1), (4, 30, None, 3), (27, 60, 2, 3)])
def test_the_source_half_shows_every_sampled_frame_at_its_rate(
    tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp, frames: int, fps: int, interval: int | None, batch: int
) -> None:
    video = grey_ramp(tmp_path / "in.mp4", frames, fps, step=9)
    output = tmp_path / "new" / "out.mp4"
    written = reconstruct_video(tiny_model, video, output, interval=interval, batch=batch)
    step = interval or 1
    sampled = list(range(0, frames, step))
    with open_frames(output) as reader:
        shown = np.stack(list(reader))
        assert reader.fps == Fraction(fps, step)
    assert written.frames == len(shown) == len(sampled)
    assert shown.shape[1:] == (32, 68, 3)
    assert [round(frame[:, :30].mean() / 9) for frame in shown] == sampled
    assert not list(output.parent.glob(".*"))


def test_the_reconstruction_half_is_the_model_s(tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp) -> None:
    video = grey_ramp(tmp_path / "in.mp4", 6, 25, step=30)
    output = tmp_path / "out.mp4"
    reconstruct_video(tiny_model, video, output, beside=False)
    ramp = (torch.arange(6.0) * 30 / 255).view(1, 1, 6, 1, 1).expand(1, 3, 6, 32, 32)
    expected = torch.cat(
        [reconstruct(tiny_model, ramp[:, :, :4]), reconstruct(tiny_model, ramp[:, :, 2:])[:, :, 2:]], 2
    )
    with open_frames(output) as reader:
        shown = np.stack(list(reader)) / 255.0
    luma = np.array([0.299, 0.587, 0.114])  # H.264 keeps it at full resolution, colour at a quarter
    assert np.abs(shown @ luma - expected[0].permute(1, 2, 3, 0).double().numpy() @ luma).mean() < 0.03


@pytest.mark.numeric
def test_mixing_a_clip_with_itself_reconstructs_it(tiny_model: VidTwin) -> None:
    clip, other = torch.rand(2, 1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    exact, wide = copy.deepcopy(tiny_model).double(), clip.double()  # both give fp32 pixels in the end
    torch.testing.assert_close(mix(exact, wide, wide), reconstruct(exact, wide), rtol=0, atol=2**-23)
    assert not torch.allclose(mix(tiny_model, clip, other), reconstruct(tiny_model, clip), atol=1e-4)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_every_ending_that_is_accepted_can_be_written(
    tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp, suffix: str
) -> None:
    assert suffix in VIDEOS
    video = grey_ramp(tmp_path / "in.mp4", 6, 25, step=30)
    reconstruct_video(tiny_model, video, tmp_path / f"out{suffix}", beside=False)
    with open_frames(tmp_path / f"out{suffix}") as reader:
        assert (len(list(reader)), reader.fps) == (6, 25)


def test_of_two_files_of_one_name_the_one_that_fails_is_told(
    tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp
) -> None:
    good, bad = grey_ramp(tmp_path / "a" / "x.mp4", 6, 25), tmp_path / "b" / "x.mp4"
    bad.parent.mkdir()
    bad.write_bytes(b"nothing")
    for command in (
        lambda: reenact(tiny_model, good, bad, tmp_path / "out.mp4"),
        lambda: reenact(tiny_model, bad, good, tmp_path / "out.mp4"),
        lambda: reconstruct_video(tiny_model, bad, tmp_path / "out.mp4"),
    ):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(bad))}(: | cannot be opened)"):
            command()
    one = grey_ramp(tmp_path / "one.mp4", 1, 25)
    with pytest.raises(ValueError, match=r"one\.mp4: only 1 frame, but .* windows of 4; name a longer video$"):
        reconstruct_video(tiny_model, one, tmp_path / "out.mp4")

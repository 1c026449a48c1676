"""VMAF against libvmaf, Netflix's own implementation, which the ffmpeg of the package imageio-ffmpeg has."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.data_pipeline.cut.videos import decoded, real_video
from trainer.evaluation.vmaf import SMALLEST, Vmaf, luma

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="its ffmpeg is the witness")
pytest.importorskip("vmaf_torch", reason="pip install -e '.[vmaf]'")

FRAMES, SIZE = 6, 224


def clip() -> Tensor:
    """Six neighbouring frames of a real video, [1, 3, T, S, S] in [0, 1]."""
    frames = np.stack(decoded(real_video("bikes.mp4"))[20 : 20 + FRAMES])[:, 20 : 20 + SIZE, 100 : 100 + SIZE]
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 255


def libvmaf(real: NDArray[np.uint8], fake: NDArray[np.uint8], folder: Path) -> list[float]:
    """The score of each frame; both are luma, [T, H, W]."""
    frames, height, width = real.shape
    inputs: list[str] = []
    for name, values in (("fake", fake), ("real", real)):
        grey = bytes([128]) * (height * width // 2)
        file = folder / f"{name}.yuv"
        file.write_bytes(b"".join(frame.tobytes() + grey for frame in values))
        inputs += ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{width}x{height}", "-r", "25", "-i", str(file)]
    log = folder / "log.json"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs]
    command += ["-lavfi", f"libvmaf=log_fmt=json:log_path={log}", "-f", "null", "-"]
    subprocess.run(command, check=True, timeout=60)
    found = [frame["metrics"]["vmaf"] for frame in json.loads(log.read_text())["frames"]]
    assert len(found) == frames
    return found


@pytest.mark.parametrize("kind", ["noise", "coarse"])
def test_windows_have_the_vmaf_of_libvmaf(tmp_path: Path, kind: str) -> None:
    """It computes in integers: at 224 pixels its frames are up to 0.3 points from those of floating point."""
    real = clip()
    if kind == "noise":
        noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
        fake = (real + 0.03 * noise).clamp(0, 1)
    else:
        small = torch.nn.functional.avg_pool3d(real, (1, 2, 2))
        fake = small.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    both = [luma(video[0].transpose(0, 1)).byte()[:, 0].numpy() for video in (real, fake)]
    expected = float(np.mean(libvmaf(both[0], both[1], tmp_path)))
    assert 20 < expected < 95
    assert Vmaf(torch.device("cpu"))(real, fake).tolist() == [pytest.approx(expected, abs=0.3)]


def test_a_perfect_copy_has_no_more_than_the_100_points_of_libvmaf(tmp_path: Path) -> None:
    """The regression itself goes on beyond them where a picture moves; libvmaf cuts it off."""
    real = clip()
    shown = luma(real[0].transpose(0, 1)).byte()[:, 0].numpy()
    expected = libvmaf(shown, shown, tmp_path)
    assert expected[1:] == [100.0] * (FRAMES - 1)
    assert Vmaf(torch.device("cpu"))(real, real).tolist() == [pytest.approx(np.mean(expected), abs=0.01)]


def test_luma_is_that_of_bt709_in_limited_range() -> None:
    """ITU-R BT.709, section 3.4: 16 is black and 235 white."""
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    frames = colours[:, :, None, None].expand(5, 3, 2, 2)
    expected = [16, 235, round(16 + 219 * 0.2126), round(16 + 219 * 0.7152), round(16 + 219 * 0.0722)]
    assert luma(frames)[:, 0, 0, 0].tolist() == expected


def test_windows_that_are_too_small_are_refused() -> None:
    small = torch.zeros(1, 3, 4, SMALLEST - 1, SMALLEST)
    with pytest.raises(ValueError, match="at least 96x96 pixels, got 95x96; leave VMAF out"):
        Vmaf(torch.device("cpu"))(small, small)

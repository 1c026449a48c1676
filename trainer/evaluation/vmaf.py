"""VMAF, Netflix's learned measure of video quality (version v0.6.1), through the package `vmaf-torch` (BSD-3).

VMAF sees the luma of whole windows. Its model was trained on pictures of 1080 lines, seen from three times their
height, so values of small windows compare with each other and not with published ones. The package computes in floating
point, and libvmaf in integers: on windows of 224 pixels the two agree to 0.3 points a frame, on smaller ones less well.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from model.precision import without_tf32
from trainer.evaluation.metrics import frames_of

PACKAGE = "vmaf_torch"
HOW_TO_GET_VMAF = "pip install -e '.[vmaf]'"
SMALLEST = 96
"""Pixels of a side. Below this, four halvings leave so few pixels that package and libvmaf differ by some points."""
_RGB_TO_LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709


def vmaf_installed() -> bool:
    """Whether the package is there."""
    return find_spec(PACKAGE) is not None


def check_sides(height: int, width: int) -> None:
    """Refuse windows that are too small for VMAF. Raises: ValueError where a side is shorter than `SMALLEST` pixels."""
    if min(height, width) < SMALLEST:
        raise ValueError(
            f"VMAF needs windows of at least {SMALLEST}x{SMALLEST} pixels, got {height}x{width}; "
            "leave VMAF out, or measure a model of larger pictures"
        )


def luma(frames: Tensor) -> Tensor:
    """The luma of BT.709 as a video stores it.

    Args:
        frames: RGB [N, 3, H, W] in [0, 1].
    Returns:
        [N, 1, H, W], whole numbers from 16 (black) to 235 (white).
    """
    weights = frames.new_tensor(_RGB_TO_LUMA).view(1, 3, 1, 1)
    return (16 + 219 * (frames * weights).sum(dim=1, keepdim=True)).round()


class Vmaf:
    """VMAF of windows.

    Args:
        device: where it computes.
    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, device: torch.device) -> None:
        if not vmaf_installed():
            raise ValueError(f"VMAF needs the package vmaf-torch; {HOW_TO_GET_VMAF}")
        from vmaf_torch import VMAF

        self._network = VMAF(clip_score=True).to(device).eval()

    @torch.no_grad()
    @without_tf32()
    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """The mean VMAF of the frames of each window, [B] from 0 to 100. The first frame counts as standing still.

        Args:
            real, fake: [B, 3, T, H, W] in [0, 1].
        Raises:
            ValueError: the shapes differ, or a side is shorter than `SMALLEST`.
        """
        if real.shape != fake.shape or real.ndim != 5:
            raise ValueError(
                f"expected two equal [B, 3, T, H, W] shapes, got {list(real.shape)} and {list(fake.shape)}"
            )
        check_sides(real.shape[-2], real.shape[-1])
        values = [
            self._network(luma(frames_of(a[None]).float()), luma(frames_of(b[None]).float())).mean()
            for a, b in zip(real, fake, strict=True)
        ]
        return torch.stack(values).cpu()

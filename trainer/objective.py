"""The generator's objective: reconstruction under a learnt scale, KL, and what the loss networks add.

As the released code: a frame's error is e = sum over colours and pixels of (|x - recon| + weight * distance), with the
distance that a perceptual network such as LPIPS finds, and nll = mean over clips and frames of e / exp(logvar) +
(values in a frame) * logvar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.lpips import LPIPS
from trainer.config.objective import LOGVAR_FLOOR

Drawn = Sequence[Sequence[int]]
"""For each clip the numbers of some of its frames, of all clips equally many."""


class Reconstruction(NamedTuple):
    """Scalars: error (mean over frames of e, with gradient), l1 and mse a value, perceptual distance a frame, or 0."""

    error: Tensor
    l1: Tensor
    mse: Tensor
    perceptual: Tensor


def values_per_frame(video_BCTHW: Tensor) -> int:
    """Colours x height x width."""
    return video_BCTHW[:1, :, :1].numel()


class Likelihood(NamedTuple):
    """Negative log-likelihood a frame, and its derivatives; all 0-dim, without graph.

    Attributes:
        nll: up to a constant.
        by_error: d nll / d error, which is exp(-logvar).
        by_logvar: d nll / d logvar.
    """

    nll: Tensor
    by_error: Tensor
    by_logvar: Tensor


@torch.no_grad()
def likelihood(error: Tensor, logvar: Tensor, values: int) -> Likelihood:
    """The likelihood of an error under a Laplace scale exp(logvar), of which no value below `LOGVAR_FLOOR` counts.

    Nothing else keeps a learnt logvar from falling: clips that are rebuilt ever better, such as black ones, push it
    down for ever, and from -88 on exp(-logvar) is no fp32 number. Below the floor a slope that would push it further
    down is 0, and one that pushes it up stays.

    Args:
        error: mean over frames of the summed error, as `ReconstructionObjective` finds it.
        logvar: the scale's logarithm.
        values: numbers in a frame.
    """
    floored = logvar.clamp(min=LOGVAR_FLOOR)
    by_error = torch.exp(-floored)
    scaled = error * by_error
    slope = values - scaled
    slope = torch.where(logvar < LOGVAR_FLOOR, slope.clamp(max=0.0), slope)
    return Likelihood(torch.add(scaled, floored, alpha=values), by_error, slope)


# The gradient at LPIPS's first layers is some 1e-7, where fp16 has steps of 6e-8; those of the other layers stay far
# below the largest fp16 number when they are multiplied by this.
FP16_GRADIENT_SCALE = 2.0**12


class ReconstructionObjective:
    """Error of a reconstruction.

    Args:
        weight: of the perceptual network's distance.
        perceptual: that network (model/lpips.py, model/st_lpips.py), in the type that it is to work in, or None.
    """

    def __init__(self, weight: float, perceptual: LPIPS | None) -> None:
        self.weight = weight
        self.perceptual = perceptual
        in_fp16 = perceptual is not None and perceptual.dtype is torch.float16
        self.gradient_scale = FP16_GRADIENT_SCALE if in_fp16 else 1.0

    def __call__(self, video_BCTHW: Tensor, recon_BCTHW: Tensor, drawn: Drawn | None = None) -> Reconstruction:
        """The error of clips [B, 3, T, H, W], fp32 in [-1, 1]; the gradient flows into `recon_BCTHW`.

        Args:
            drawn: of each clip the frames that the perceptual network sees; None = all.
        """
        frames = video_BCTHW.shape[0] * video_BCTHW.shape[2]
        values = values_per_frame(video_BCTHW)
        difference = recon_BCTHW - video_BCTHW
        error = difference.abs().sum() / frames
        plain = difference.detach()
        perceived = torch.zeros((), device=video_BCTHW.device)
        if self.perceptual is not None:
            perceived = self.perceptual(_frames(video_BCTHW, drawn), _frames(recon_BCTHW, drawn)).mean()
            error = error + self.weight * values * perceived
        return Reconstruction(error, plain.abs().mean(), plain.square().mean(), perceived.detach())

    def gradient(self, rebuilt: Reconstruction, recon_BCTHW: Tensor, factor: Tensor) -> Tensor:
        """Gradient of factor x error at the reconstruction [B, 3, T, H, W]; `factor` is 0-dim, without graph."""
        (grad,) = torch.autograd.grad(rebuilt.error * (factor * self.gradient_scale), recon_BCTHW)
        return grad / self.gradient_scale


def to_unit_range(frames: Tensor) -> Tensor:
    """uint8 frames as fp32 in [-1, 1]; floating-point frames are in that range already, and pass."""
    return frames if frames.is_floating_point() else frames.float().div_(127.5).sub_(1.0)


def _frames(video_BCTHW: Tensor, drawn: Drawn | None) -> Tensor:
    """[B, 3, T, H, W] -> [B*T, 3, H, W], or [B*n, 3, H, W] with the n frames that are drawn of each clip."""
    if drawn is None:
        return video_BCTHW.transpose(1, 2).flatten(0, 1)
    # The numbers of the frames stay on the host: as a tensor they would have to be copied to the device.
    return torch.stack([clip[:, frame] for clip, frames in zip(video_BCTHW, drawn, strict=True) for frame in frames])

"""PSNR and SSIM of frames, as the paper's tables use them; all metrics of windows.

Shapes: N frames, C channels, H W pixels. Values are in [0, 1] unless a docstring says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from model.lpips import LPIPS
from model.precision import without_tf32
from model.vidtwin import VidTwin

PSNR_CEILING = 100.0  # dB for equal frames, where the definition gives infinity

SSIM_SMALLEST = 11  # pixels of a side of a frame, into which the window of SSIM must fit
_WINDOW = SSIM_SMALLEST  # Wang et al. 2004, section III-B: 11x11 circular Gaussian, sigma 1.5, K1 = 0.01, K2 = 0.03
_SIGMA = 1.5
_WEIGHTS = [math.exp(-((place - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for place in range(_WINDOW)]
_KERNEL = [weight / math.fsum(_WEIGHTS) for weight in _WEIGHTS]
_CACHED = 2**16  # pixels that are measured together on a processor, so that what they need stays in its cache
_C1 = 0.01**2
_C2 = 0.03**2


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame.

    Args:
        a, b: frames [N, C, H, W] in [0, 1]; the order does not matter.
    Returns:
        [N] float32 in dB: -10 log10 of the squared error averaged over C, H and W, at most `PSNR_CEILING`.
    Raises:
        ValueError: shapes differ or are not [N, C, H, W].
    """
    _check(a, b)
    error = (a.float() - b.float()).square().mean(dim=(1, 2, 3))
    return -10.0 * error.clamp(min=10.0 ** (-PSNR_CEILING / 10)).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each frame (Wang et al. 2004).

    The Gaussian window is applied where it fits entirely inside the frame ("valid"), with population covariances, and
    the map is averaged over channels and positions. Frames are not shrunk first, which matters above 256 pixels only.
    It is computed in float64: a variance is E[x^2] - E[x]^2, and where a frame is flat, what fp32 leaves of it is up to
    1e-3 of C2 and depends on the processor. (16 frames of 224 pixels take one core 0.1 to 0.2 s.)

    Args:
        a, b: frames [N, C, H, W] in [0, 1].
    Returns:
        [N] float32, 1 for equal frames.
    Raises:
        ValueError: shapes differ, or a side is shorter than the 11-pixel window.
    """
    _check(a, b)
    n, c, height, width = a.shape
    if min(height, width) < _WINDOW:
        raise ValueError(f"SSIM needs frames of at least {_WINDOW}x{_WINDOW} pixels, got {height}x{width}")
    x, y = a.reshape(n * c, height, width), b.reshape(n * c, height, width)
    together = max(1, _CACHED // (height * width)) if x.device.type == "cpu" else n * c
    means = [
        _ssim_maps(some.double(), other.double()).flatten(1).mean(dim=1)
        for some, other in zip(x.split(together), y.split(together), strict=True)
    ]
    return torch.cat(means).reshape(n, c).mean(dim=1).float()


def _ssim_maps(x: Tensor, y: Tensor) -> Tensor:
    """SSIM at each position of planes [M, H, W] in float64; the definition needs the sum of the variances alone."""
    mean_x, mean_y = _blur(x), _blur(y)
    of_means, squares = mean_x * mean_y, mean_x.square_().addcmul_(mean_y, mean_y)
    variances = _blur(x.square().addcmul_(y, y)).sub_(squares).add_(_C2)
    covariance = _blur(x * y).sub_(of_means).mul_(2).add_(_C2)
    luminance = of_means.mul_(2).add_(_C1).div_(squares.add_(_C1))
    return luminance.mul_(covariance).div_(variances)


def to_unit(video: Tensor) -> Tensor:
    """A model's video in [-1, 1] as [0, 1]. Values outside are clamped, as in a picture that is shown or written."""
    return (video.float().clamp(-1, 1) + 1) / 2


def frames_of(video: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W]; the frames of a clip stay together."""
    return video.transpose(1, 2).flatten(0, 1)


def _blur(x: Tensor) -> Tensor:
    """The separable Gaussian window over [M, H, W], valid positions only: shifted planes, weighted and summed."""
    height, width = (size - _WINDOW + 1 for size in x.shape[-2:])
    lines = x[:, :height] * _KERNEL[0]
    for place, weight in enumerate(_KERNEL[1:], 1):
        lines.add_(x[:, place : place + height], alpha=weight)
    found = lines[..., :width] * _KERNEL[0]
    for place, weight in enumerate(_KERNEL[1:], 1):
        found.add_(lines[..., place : place + width], alpha=weight)
    return found


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"expected two equal [N, C, H, W] shapes, got {list(a.shape)} and {list(b.shape)}")


@torch.no_grad()
@without_tf32()
def window_values(real: Tensor, fake: Tensor, perceptual: Mapping[str, LPIPS]) -> dict[str, list[float]]:
    """For each metric, the mean over its frames for every window.

    Args:
        real, fake: [B, 3, T, H, W] in [0, 1].
        perceptual: networks that measure too, by the names of their metrics.
    """
    a, b = frames_of(real), frames_of(fake)
    frames = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
    for name, network in perceptual.items():
        frames[name] = network(a * 2 - 1, b * 2 - 1).flatten()
    return {metric: values.view(len(real), -1).mean(dim=1).tolist() for metric, values in frames.items()}


@torch.no_grad()
@without_tf32()
def reconstruct(model: VidTwin, video: Tensor, structure: bool = True, dynamics: bool = True) -> Tensor:
    """Encode a video to posterior means and decode them; input and result are in [0, 1].

    Args:
        video: [B, 3, T, S, S] in [0, 1].
        structure, dynamics: False leaves that latent out.
    """
    return to_unit(model.decode(model.encode(video * 2 - 1), structure=structure, dynamics=dynamics))


@torch.no_grad()
@without_tf32()
def taken_apart(model: VidTwin, video: Tensor) -> Tensor:
    """Clips beside what a model makes of all of a clip's latents, of structure alone, and of dynamics alone.

    Args:
        video: [B, 3, T, S, S] in [0, 1].
    Returns:
        [B, 4, 3, T, S, S] in [0, 1].
    """
    latents = model.encode(video * 2 - 1)
    chosen = ((True, True), (True, False), (False, True))
    rebuilt = [to_unit(model.decode(latents, structure=structure, dynamics=dynamics)) for structure, dynamics in chosen]
    return torch.stack([video, *rebuilt], dim=1)

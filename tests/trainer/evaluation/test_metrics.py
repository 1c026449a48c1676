"""PSNR and SSIM against SciPy's filters and closed forms, which share no code with ours."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from model.network import Latents
from trainer.evaluation.metrics import PSNR_CEILING, frames_of, psnr, reconstruct, ssim, to_unit, window_values
from trainer.evaluation.reconstruction import mix

pytestmark = pytest.mark.numeric


def scipy_ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """SSIM of one [C, H, W] frame as scikit-image documents matching Wang et al.

    gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1: SciPy's Gaussian truncated at 3.5 sigma
    (radius 5), borders of 5 pixels left out of the mean, channels averaged.
    """
    scores = []
    for x, y in zip(a, b, strict=True):

        def blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.asarray(gaussian_filter(image, 1.5, truncate=3.5))

        ux, uy = blur(x), blur(y)
        vx, vy, vxy = blur(x * x) - ux * ux, blur(y * y) - uy * uy, blur(x * y) - ux * uy
        score = ((2 * ux * uy + 1e-4) * (2 * vxy + 9e-4)) / ((ux**2 + uy**2 + 1e-4) * (vx + vy + 9e-4))
        scores.append(score[5:-5, 5:-5].mean())
    return float(np.mean(scores))


@pytest.mark.parametrize("shape", [(3, 11, 11), (3, 37, 50), (1, 64, 64)])
@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_ssim_is_the_documented_definition(shape: tuple[int, int, int], noise: float) -> None:
    rng = np.random.default_rng(0)
    a = gaussian_filter(rng.random((4, *shape)), (0, 0, 2, 2))
    b = np.clip(a + noise * rng.standard_normal(a.shape), 0, 1)
    a, b = (frames.astype(np.float32).astype(np.float64) for frames in (a, b))  # the same numbers for both
    ours = ssim(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    expected = [scipy_ssim(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=2**-23)  # all of it in fp64, the result in fp32


def test_ssim_of_nearly_flat_frames_does_not_cancel() -> None:
    """Noise of 1e-4 around 0.9: fp32 would lose its variance of 1e-8 in squares of 0.81."""
    rng = np.random.default_rng(1)
    a, b = (np.float32(0.9 + 1e-4 * rng.standard_normal((1, 3, 32, 32))) for _ in range(2))
    ours = ssim(torch.from_numpy(a), torch.from_numpy(b))
    expected = scipy_ssim(a[0].astype(np.float64), b[0].astype(np.float64))
    np.testing.assert_allclose(ours.numpy(), [expected], rtol=0, atol=2**-23)


def test_ssim_of_flat_frames_is_its_luminance_term() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.25), torch.full((1, 3, 16, 16), 0.75)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-6)
    assert ssim(a, a).item() == pytest.approx(1.0)


@pytest.mark.parametrize("offset", [1 / 255, 0.1, 0.5])
def test_psnr_of_a_constant_error_is_its_closed_form(offset: float) -> None:
    a = torch.full((2, 3, 8, 8), 0.3)
    assert psnr(a, a + offset)[1].item() == pytest.approx(-20 * math.log10(offset), abs=1e-3)


def test_psnr_is_per_frame_and_has_a_ceiling() -> None:
    a = torch.rand(2, 3, 8, 8)
    b = a.clone()
    b[1] = 1 - b[1]
    values = psnr(a, b)
    mse = float(np.mean((a[1].numpy() - b[1].numpy()) ** 2))
    assert values[0].item() == pytest.approx(PSNR_CEILING)
    assert values[1].item() == pytest.approx(-10 * math.log10(mse), abs=1e-3)


def test_frames_of_keeps_the_frames_of_a_clip_in_order() -> None:
    video = torch.arange(2 * 3 * 4).float().reshape(2, 3, 4, 1, 1)
    frames = frames_of(video)
    assert frames.shape == (8, 3, 1, 1)
    assert torch.equal(frames[5], video[1, :, 1])


def test_to_unit_clamps_what_cannot_be_shown() -> None:
    assert to_unit(torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_wrong_shapes_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[1, 3, 8, 8\] and \[1, 3, 8, 9\]"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 10x64"):
        ssim(torch.zeros(1, 3, 10, 64), torch.zeros(1, 3, 10, 64))


class Observing:
    """A model and a perceptual network that change nothing, and note what rounding a GPU may do while they work."""

    def __init__(self) -> None:
        self.allowed: list[tuple[bool, bool]] = []
        self.last_layer = torch.nn.Linear(1, 1)

    def encode(self, video: Tensor) -> Latents:
        self.allowed.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return Latents(video, video)

    def decode(self, latents: Latents, structure: bool = True, dynamics: bool = True) -> Tensor:
        self.encode(latents.structure)
        return latents.structure

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        self.encode(a)
        return (a - b).abs().mean(dim=(1, 2, 3))


@pytest.fixture(params=[(True, True), (False, True), (False, False)])
def usual(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool]]:
    """What a training lets a GPU round to TF32: products, convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_what_is_reported_never_rounds_to_tf32_and_training_does_as_before(usual: tuple[bool, bool]) -> None:
    video, seen = torch.rand(2, 3, 2, 16, 16), Observing()
    window_values(video, reconstruct(seen, video), {"lpips": seen})  # type: ignore[dict-item, arg-type]
    mix(seen, video, video)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected two equal"):
        window_values(video, video[:1], {})
    assert seen.allowed == [(False, False)] * 6
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == usual

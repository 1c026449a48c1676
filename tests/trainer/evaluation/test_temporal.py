"""PSNR of frame differences and flicker against NumPy and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainer.evaluation.metrics import PSNR_CEILING
from trainer.evaluation.temporal import change_products, difference_psnr, flicker

pytestmark = pytest.mark.numeric


def windows(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((2, 3, 5, 9, 7), dtype=np.float32)


def test_both_are_their_definitions() -> None:
    real, fake = windows(0), windows(1)
    a, b = real.astype(np.float64), fake.astype(np.float64)
    differences = (b[:, :, 1:] - b[:, :, :-1]) - (a[:, :, 1:] - a[:, :, :-1])
    expected = (-10 * np.log10((differences**2).mean(axis=(1, 3, 4)))).mean(axis=1)
    products = change_products(torch.from_numpy(real), torch.from_numpy(fake))
    np.testing.assert_allclose(difference_psnr(products).numpy(), expected, rtol=2**-22)
    variance = np.var(255 * (b - a), axis=2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(flicker(products).numpy(), variance, rtol=2**-22)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_errors_of_windows_in_sixteen_bits_are_not_rounded_to_them(dtype: torch.dtype) -> None:
    real, fake = (torch.from_numpy(windows(seed)).to(dtype) for seed in (3, 4))
    a, b = (values.double().numpy() for values in (real, fake))
    variance = np.var(255 * (b - a), axis=2).mean(axis=(1, 2, 3))
    products = change_products(real, fake)
    np.testing.assert_allclose(flicker(products).numpy(), variance, rtol=2**-22)
    differences = np.diff(b - a, axis=2)
    expected = (-10 * np.log10((differences**2).mean(axis=(1, 3, 4)))).mean(axis=1)
    np.testing.assert_allclose(difference_psnr(products).numpy(), expected, rtol=2**-22)


def test_an_error_that_stands_still_is_no_error_over_time() -> None:
    real = torch.from_numpy(windows(2)) / 2
    fake = real + torch.rand(2, 3, 1, 9, 7, dtype=torch.float64).round(decimals=2)
    products = change_products(real, fake)
    assert difference_psnr(products).tolist() == [PSNR_CEILING] * 2
    assert flicker(products).max() < 1e-20


@pytest.mark.parametrize("amplitude", [1 / 255, 0.1])
def test_an_error_that_changes_its_sign_in_each_frame_has_a_closed_form(amplitude: float) -> None:
    """Differences are off by twice the amplitude, and the variance over an even number of frames is its square."""
    real = torch.full((1, 3, 6, 8, 8), 0.5, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0] * 3, dtype=torch.float64).view(1, 1, 6, 1, 1)
    fake = real + amplitude * sign
    products = change_products(real, fake)
    assert difference_psnr(products).item() == pytest.approx(-20 * math.log10(2 * amplitude), abs=1e-5)
    assert flicker(products).item() == pytest.approx((255 * amplitude) ** 2, rel=1e-6)


def test_one_frame_and_unequal_shapes_are_refused() -> None:
    one = torch.zeros(1, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="measure windows of 2 frames or more"):
        change_products(one, one)
    with pytest.raises(ValueError, match="expected two equal"):
        change_products(one, one[0])

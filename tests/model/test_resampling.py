"""Resampling a line against PyTorch's interpolation."""

import pytest
import torch
from torch.nn import functional as F

from model.resampling import resampling

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(("before", "after"), [(7, 14), (5, 9), (1, 3), (4, 4), (2, 3)])
def test_more_samples_are_pytorchs_linear_interpolation(before: int, after: int) -> None:
    line = torch.randn(3, 1, before, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(line, size=after, mode="linear", align_corners=False)
    torch.testing.assert_close(line @ resampling(before, after).T, expected)


@pytest.mark.parametrize(("few", "many"), [(7, 14), (5, 9), (1, 3), (8, 16)])
def test_there_and_back_is_the_identity_and_constants_stay(few: int, many: int) -> None:
    torch.testing.assert_close(resampling(many, few) @ resampling(few, many), torch.eye(few, dtype=torch.float64))
    for before, after in ((few, many), (many, few)):
        torch.testing.assert_close(resampling(before, after).sum(1), torch.ones(after, dtype=torch.float64))

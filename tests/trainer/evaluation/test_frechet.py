"""Frechet distance against closed forms of Gaussians and SciPy's general matrix root."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from trainer.evaluation.frechet import (
    GaussianStatistics,
    VideoFeatures,
    VideoFrechet,
    frechet_distance,
    network_failure,
)

pytestmark = pytest.mark.numeric


def test_commuting_covariances_have_a_closed_form() -> None:
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    va, vb = rng.random(6) + 0.1, rng.random(6) + 0.1
    ma, mb = rng.standard_normal(6), rng.standard_normal(6)
    expected = ((ma - mb) ** 2).sum() + ((np.sqrt(va) - np.sqrt(vb)) ** 2).sum()
    ours = frechet_distance(ma, basis @ np.diag(va) @ basis.T, mb, basis @ np.diag(vb) @ basis.T)
    assert ours == pytest.approx(expected, rel=1e-9)


def test_general_covariances_agree_with_the_matrix_root() -> None:
    rng = np.random.default_rng(2)
    a, b = (np.cov(rng.standard_normal((40, 8)) @ rng.standard_normal((8, 8)), rowvar=False) for _ in range(2))
    expected = np.trace(a + b - 2 * sqrtm(a @ b)).real
    assert frechet_distance(np.zeros(8), a, np.zeros(8), b) == pytest.approx(expected, rel=1e-8)


def test_a_singular_covariance_is_no_trouble() -> None:
    rows = np.random.default_rng(3).standard_normal((3, 20))
    covariance = np.cov(rows, rowvar=False)
    assert frechet_distance(rows.mean(0), covariance, rows.mean(0), covariance) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows.mean(0), covariance, rows.mean(0), np.zeros((20, 20))) == pytest.approx(
        np.trace(covariance)
    )


def test_statistics_in_batches_are_those_of_the_whole_even_far_from_zero() -> None:
    rows = np.random.default_rng(4).standard_normal((101, 5)) + 1e6
    statistics = GaussianStatistics(5)
    for part in np.array_split(rows, 7):
        statistics.add(part)
    mean, covariance = statistics.mean_and_covariance()
    np.testing.assert_allclose(mean, rows.mean(0))
    np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False), rtol=1e-6, atol=1e-8)


class FirstPixels(nn.Module):
    """Stands in for I3D: same call, features that are easy to compute by hand."""

    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        """Mean colour, on the 0..255 scale the real network is fed."""
        return video.mean(dim=[2, 3, 4])


def test_fvd_feeds_0_to_255_and_warns_when_clips_are_few(tmp_path: Path) -> None:
    file = tmp_path / "features.pt"
    torch.jit.script(FirstPixels()).save(str(file))  # type: ignore[no-untyped-call]
    fvd = VideoFrechet(VideoFeatures(file, torch.device("cpu")))
    real = torch.rand(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    fvd.add(real[:2], real[:2] * 0 + 0.5)
    fvd.add(real[2:], real[2:] * 0 + 0.5)
    distance, remark = fvd.result()
    features = 255 * real.mean(dim=(2, 3, 4)).double().numpy()
    expected = ((features.mean(0) - 127.5) ** 2).sum() + np.trace(np.cov(features, rowvar=False))
    assert distance == pytest.approx(expected, rel=1e-3)
    assert "3 clips for 3 feature dimensions" in remark


def test_a_missing_or_wrong_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--fvd .*absent\.pt is no file; it names i3d_torchscript"):
        VideoFeatures(tmp_path / "absent.pt", torch.device("cpu"))
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"wrong\.pt is not a TorchScript file"):
        VideoFeatures(wrong, torch.device("cpu"))


class FewClips(nn.Module):
    """As a network that was traced with two clips and can take no more."""

    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        if len(video) > 2:
            raise RuntimeError("made for two")
        return video.mean(dim=[2, 3, 4])


class NoFeatures(nn.Module):
    """Gives a number in place of features."""

    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return video.mean()


def network_of(module: nn.Module, file: Path) -> VideoFeatures:
    torch.jit.script(module).save(str(file))  # type: ignore[no-untyped-call]
    return VideoFeatures(file, torch.device("cpu"))


def test_a_network_that_fails_on_more_clips_is_one_line_with_their_number_and_a_remedy(tmp_path: Path) -> None:
    network, clips = network_of(FewClips(), tmp_path / "few.pt"), torch.zeros(3, 3, 4, 8, 8)
    for passed, remedy in ((0, "name another network"), (2, "it has taken 2 before, .* name a network that takes any")):
        if passed:
            assert network(clips[:passed]).shape == (2, 3)
        with pytest.raises(
            ValueError, match=rf"^--fvd .*few\.pt cannot be called .* on 3 clips .* two; {remedy}"
        ) as told:
            network(clips)
        assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=r"none\.pt gives \[\] for 3 clips, not \[B, d\]; name another network"):
        network_of(NoFeatures(), tmp_path / "none.pt")(clips)


def test_want_of_memory_has_its_own_remedy() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")):
        told = network_failure("--fvd f", "network(video)", error, 16, 4)
        assert told.endswith("; give it a device with more memory, or fewer clips together where that can be set")

"""Frechet distance against closed forms of Gaussians and SciPy's general matrix root."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from trainer.evaluation.frechet import GaussianStatistics, VideoFeatures, frechet_distance, network_failure
from trainer.evaluation.frechet_protocol import FVD2048_16F, FrechetProtocol
from trainer.evaluation.measures import Measures, distance

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


def test_fvd_feeds_0_to_255_and_is_refused_where_clips_are_few(tmp_path: Path) -> None:
    file = tmp_path / "features.pt"
    torch.jit.script(FirstPixels()).save(str(file))  # type: ignore[no-untyped-call]
    measures = Measures(fvd=VideoFeatures(file, torch.device("cpu")))
    real = torch.rand(3, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    parts = [measures.of(part, part * 0 + 0.5)[1]["fvd"] for part in (real[:2], real[2:])]
    value, remark = distance(parts, allow_few=True)
    features = 255 * real.mean(dim=(2, 3, 4)).double().numpy()
    offset = ((features.mean(0) - 127.5) ** 2).sum()
    assert value == pytest.approx(offset + np.trace(np.cov(features, rowvar=False)), rel=1e-3)
    assert "3 clips for 3 feature dimensions" in remark
    value, _ = distance(parts, allow_few=True, population=True)
    assert value == pytest.approx(offset + np.trace(np.cov(features, rowvar=False, ddof=0)), rel=1e-3)
    refused, why = distance(parts, allow_few=False)
    assert refused is None
    assert "pass --few-clips" in why


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
            assert network(clips[:passed]).shape == (2, 1, 3)
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


class PlainNetwork(nn.Module):
    """An extractor of another call: clips in [0, 1] alone."""

    def forward(self, video: Tensor) -> Tensor:
        return video.mean(dim=[2, 3, 4])


class Bad(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, video: Tensor) -> Tensor:
        if self.kind == "shape":
            return video
        if self.kind == "finite":
            return video.mean(dim=[2, 3, 4]) / 0
        return video @ video[0, 0, 0]


def test_any_torchscript_network_serves_and_its_digest_names_it(tmp_path: Path) -> None:
    file = tmp_path / "plain.pt"
    torch.jit.script(PlainNetwork()).save(str(file))  # type: ignore[no-untyped-call]
    network = VideoFeatures(file, torch.device("cpu"))
    video = torch.rand(2, 3, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(network(video)[:, 0], video.double().mean(dim=(2, 3, 4)).numpy(), rtol=1e-6)
    assert network.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    for kind, why in (
        ("shape", r"gives \[2, 3, 4, 8, 6\] for 2 clips, not \[B, d\]"),
        ("finite", "gives numbers that are not finite"),
        ("call", r"cannot be called as network\(video\)"),
    ):
        torch.jit.script(Bad(kind)).save(str(file))  # type: ignore[no-untyped-call]
        with pytest.raises(ValueError, match=why):
            VideoFeatures(file, torch.device("cpu"))(video)


def test_the_covariance_of_a_population_is_divided_by_its_count() -> None:
    rows = np.random.default_rng(5).standard_normal((9, 4))
    statistics = GaussianStatistics(4)
    statistics.add(rows)
    _, covariance = statistics.mean_and_covariance(population=True)
    np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False, ddof=0), rtol=1e-12, atol=1e-14)


def test_a_protocol_is_told_and_held_against_the_published_one() -> None:
    protocol = FrechetProtocol(
        metric="fvd", real=2048, fake=2048, frames=16, stride=1, size=224, split="val", seed=3, extractor="ab" * 32,
        preset=FVD2048_16F.name,
    )  # fmt: skip
    protocol.check(FVD2048_16F, allow_few=False)
    assert protocol.line() == (
        "fvd2048_16f, but the other clips are reconstructions of the same ones: 2048 real clips and 2048 others, "
        "16 frames, each, 224x224, split val, drawn with seed 3, extractor abababababab"
    )
    few = replace(protocol, real=100, fake=100)
    with pytest.raises(
        ValueError, match="fvd2048_16f asks for real clips: 2048, here 100; other clips: 2048, here 100"
    ):
        few.check(FVD2048_16F, allow_few=False)
    few.check(FVD2048_16F, allow_few=True)
    with pytest.raises(ValueError, match="frames of a clip: 16, here 8; frames from one to the next: 1, here None"):
        replace(few, frames=8, stride=None).check(FVD2048_16F, allow_few=True)

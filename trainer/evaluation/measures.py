"""What is measured of windows: values of each window, and features of whole sets of windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.lpips import LPIPS
from trainer.evaluation.catalogue import CATALOGUE, FeatureNetwork, Level, WindowMetric
from trainer.evaluation.feature_networks import DIFFERENCES
from trainer.evaluation.frechet import GaussianStatistics, VideoFeatures, few_vectors, frechet_distance, too_few
from trainer.evaluation.frechet_protocol import FrechetPreset
from trainer.evaluation.metrics import SSIM_SMALLEST, window_values
from trainer.evaluation.pieces import Features
from trainer.evaluation.temporal import change_products, difference_psnr, flicker
from trainer.evaluation.vmaf import check_sides

METRICS = {  # name -> (unit, better, digits behind the point in tables)
    name: (metric.unit, metric.better, metric.digits)
    for name, metric in CATALOGUE.items()
    if metric.level is not Level.model
}
FVD = "fvd"


@dataclass(frozen=True)
class Measures:
    """The metrics of a measurement.

    Attributes:
        perceptual: perceptual networks by the names of their metrics, `lpips` or `st_lpips`.
        fvd: the feature network of FVD; None leaves FVD out.
        digests: of the networks, by the names of their metrics.
        vmaf: VMAF; None leaves it out.
        frames: further feature networks, those of frames.
        allow_few: give an FVD of no more windows than feature dimensions.
        preset: the published protocol of FVD; None for all windows.
    """

    perceptual: Mapping[str, LPIPS] = field(default_factory=dict)
    fvd: VideoFeatures | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    vmaf: WindowMetric | None = None
    frames: Sequence[FeatureNetwork] = ()
    allow_few: bool = False
    preset: FrechetPreset | None = None

    @property
    def sets(self) -> list[FeatureNetwork]:
        """The networks of the metrics of whole sets."""
        return [*([] if self.fvd is None else [self.fvd]), *self.frames]

    def check(self, size: int) -> None:
        """Refuse windows that a metric cannot measure, before the first one is read.

        Args:
            size: side of the windows in pixels.
        Raises:
            ValueError: the windows are too small for SSIM, a perceptual network or VMAF.
        """
        smallest = {"SSIM, which is always measured,": SSIM_SMALLEST}
        smallest |= {f"--{name.replace('_', '-')}": network.SMALLEST for name, network in self.perceptual.items()}
        for metric, least in smallest.items():
            if size < least:
                raise ValueError(
                    f"{metric} needs windows of at least {least}x{least} pixels, got {size}x{size}; measure a model of "
                    "larger pictures"
                )
        if self.vmaf is not None:
            check_sides(size, size)

    def of(
        self, real: Tensor, fake: Tensor, known: Mapping[str, NDArray[np.floating]] | None = None
    ) -> tuple[dict[str, list[float]], dict[str, Features]]:
        """Values and features of windows.

        Args:
            real, fake: [B, 3, T, H, W] in [0, 1].
            known: features of the real windows by the names of their metrics, where they have been computed before.
        """
        known = known or {}
        values = window_values(real, fake, self.perceptual)
        if real.shape[2] > 1:
            changes = change_products(real, fake)
            values |= {"difference_psnr": difference_psnr(changes).tolist(), "flicker": flicker(changes).tolist()}
        if self.vmaf is not None:
            values["vmaf"] = self.vmaf(real, fake).tolist()
        networks = [network for network in self.sets if real.shape[2] > 1 or network.name != DIFFERENCES]
        pairs = {}
        for network in networks:
            before = known.get(network.name)
            pairs[network.name] = (network(real) if before is None else before, network(fake))
        return values, pairs

    def not_computed(self) -> dict[str, str]:
        """For each metric that is left out, how to get it."""
        there = {*self.perceptual, *(network.name for network in self.sets), *(["vmaf"] if self.vmaf else [])}
        return {
            name: metric.needs
            for name, metric in CATALOGUE.items()
            if metric.needs and metric.level is not Level.model and name not in there
        }


def distance(
    features: list[Features], what: str = "clips", *, allow_few: bool, population: bool = False
) -> tuple[float | None, str]:
    """The Frechet distance of features [n, m, d] that come in pieces, and a remark, which may be empty.

    The order of the pieces decides the last bits of the distance. It is None for fewer than two vectors, or too few.

    Args:
        what: the things that the features belong to, for the remark.
        allow_few: give a distance, with a remark, of no more vectors than dimensions.
        population: divide covariances by the number of vectors, and not by one less.
    """
    count = sum(real.shape[0] * real.shape[1] for real, _ in features)
    if count < 2:
        return None, f"it needs at least two {what}"
    dimension = features[0][0].shape[-1]
    if not allow_few and (refused := too_few(count, dimension, what)):
        return None, refused
    both = [GaussianStatistics(dimension), GaussianStatistics(dimension)]
    for pair in features:
        for statistics, rows in zip(both, pair, strict=True):
            statistics.add(np.asarray(rows).reshape(-1, dimension))
    means = [statistics.mean_and_covariance(population=population) for statistics in both]
    return frechet_distance(*means[0], *means[1]), few_vectors(count, dimension, what)

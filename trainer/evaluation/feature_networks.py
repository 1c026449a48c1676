"""The networks whose features of clips are compared: any TorchScript extractor, and EfficientNet-Lite0.

Each takes clips [B, 3, T, S, S] in [0, 1] and gives float32 [B, n, d]: n feature vectors of each clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.store.files import file_sha256
from model.efficientnet import EfficientNetLite0, installed, package_file
from trainer.evaluation.metrics import frames_of

FRAMES = "frechet_efficientnet_frames"
DIFFERENCES = "frechet_efficientnet_differences"
TOGETHER = 16
"""Frames that go through EfficientNet-Lite0 together; its widest layer takes 4.8 MB for each."""


@dataclass
class FrameFeatures:
    """EfficientNet-Lite0 on every frame, or on the differences of neighbouring frames.

    A difference is a picture as well: (next frame - this frame + 1) / 2, which is grey where nothing moves.
    """

    network: EfficientNetLite0
    differences: bool
    device: torch.device

    @property
    def name(self) -> str:
        """The name of the metric."""
        return DIFFERENCES if self.differences else FRAMES

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, with the name of the metric."""
        return f"{file_sha256(package_file())} {self.name}"

    def __call__(self, video: Tensor) -> NDArray[np.float32]:
        """[B, 3, T, S, S] in [0, 1] -> [B, T, 1280], or [B, T - 1, 1280] of differences.

        Raises:
            ValueError: the pixels or the features are not finite.
        """
        video = video.to(self.device)
        if self.differences:
            video = (video[:, :, 1:] - video[:, :, :-1] + 1) / 2
        found = [self.network.features(frames).cpu() for frames in frames_of(video).split(TOGETHER)]
        features = torch.cat(found)
        if not torch.isfinite(features).all():
            if not torch.isfinite(video).all():
                raise ValueError(f"{self.name}: the clips have pixels that are infinite or no number")
            raise ValueError(
                f"{self.name}: EfficientNet-Lite0 gives numbers that are not finite; install its package again"
            )
        return features.reshape(len(video), video.shape[2], -1).numpy()


def frame_networks(device: torch.device, frames: int) -> list[FrameFeatures]:
    """EfficientNet-Lite0 on frames and on their differences; none where its weights are not installed.

    Args:
        device: where it computes.
        frames: of a clip; a clip of one frame has no differences.
    """
    if not installed():
        return []
    network = EfficientNetLite0.from_package().to(device)
    return [FrameFeatures(network, differences, device) for differences in (False, True)[: min(frames, 2)]]

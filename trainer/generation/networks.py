"""The networks that look at clips: an extractor for gFVD, EfficientNet-Lite0, and a classifier.

Each takes clips [B, 3, T, S, S] in [0, 1] and gives float32 [B, n, d]: n feature vectors of each clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.store.files import file_sha256
from model.efficientnet import EfficientNetLite0, package_file
from model.precision import without_tf32
from trainer.evaluation.frechet import VideoFeatures, last_line, network_failure
from trainer.evaluation.metrics import frames_of

GFVD = "gfvd"
FRAMES = "frechet_efficientnet_frames"
DIFFERENCES = "frechet_efficientnet_differences"
CLASSIFIER = "classifier"
TOGETHER = 16
"""Frames that go through EfficientNet-Lite0 together; its widest layer takes 4.8 MB for each."""


class Network(Protocol):
    """Looks at clips."""

    @property
    def name(self) -> str:
        """Of the measure that it serves."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of its file."""
        ...

    def __call__(self, video: Tensor) -> NDArray[np.float32]:
        """[B, 3, T, S, S] in [0, 1] -> [B, n, d]."""
        ...


class Extractor:
    """The feature network of gFVD: a TorchScript file that is called as `launch/evaluate.py` calls the one of FVD.

    Args:
        file: the TorchScript file.
        device: where it computes.
    Raises:
        ValueError: there is no such file, or it is not TorchScript.
    """

    name = GFVD

    def __init__(self, file: Path, device: torch.device) -> None:
        self._features, self._file, self._device = VideoFeatures(file, device, "--extractor "), file, device
        self.digest = file_sha256(file)

    def __call__(self, video: Tensor) -> NDArray[np.float32]:
        """Raises: ValueError as `VideoFeatures` does, and for numbers that are not finite."""
        found = np.asarray(self._features(video.to(self._device)), dtype=np.float32)
        if not np.isfinite(found).all():
            raise ValueError(f"--extractor {self._file} gives numbers that are not finite; name another network")
        return found[:, None]


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
        return DIFFERENCES if self.differences else FRAMES

    @property
    def digest(self) -> str:
        return f"{file_sha256(package_file())} {self.name}"

    def __call__(self, video: Tensor) -> NDArray[np.float32]:
        """[B, 3, T, S, S] in [0, 1] -> [B, T, 1280], or [B, T - 1, 1280] of differences."""
        video = video.to(self.device)
        if self.differences:
            video = (video[:, :, 1:] - video[:, :, :-1] + 1) / 2
        found = [self.network.features(frames).cpu() for frames in frames_of(video).split(TOGETHER)]
        return torch.cat(found).reshape(len(video), video.shape[2], -1).numpy()


class Classifier:
    """A TorchScript network that takes clips [B, 3, T, S, S] in [0, 1] and gives logits [B, classes].

    Args:
        file: the TorchScript file.
        classes: in the order of its logits.
        device: where it computes.
    Raises:
        ValueError: there is no such file, or it is not TorchScript.
    """

    name = CLASSIFIER

    def __init__(self, file: Path, classes: int, device: torch.device) -> None:
        if not file.is_file():
            raise ValueError(f"--classifier {file} is no file; it names a TorchScript classifier")
        try:
            self._network = torch.jit.load(str(file), map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(f"--classifier {file} is not a TorchScript file ({last_line(error)})") from error
        self._file, self._classes, self._device, self._most = file, classes, device, 0
        self.digest = file_sha256(file)

    @torch.no_grad()
    @without_tf32()
    def __call__(self, video: Tensor) -> NDArray[np.float32]:
        """Logits [B, 1, classes]. Raises: ValueError for a network of another call or of other classes."""
        try:
            found = self._network(video.to(self._device))
        except (RuntimeError, torch.jit.Error) as error:
            named = f"--classifier {self._file}"
            raise ValueError(network_failure(named, "network(video)", error, len(video), self._most)) from error
        if not isinstance(found, Tensor) or found.shape != (len(video), self._classes):
            given = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"--classifier {self._file} gives {given}, not [{len(video)}, {self._classes}]: a number for each of "
                f"the {self._classes} training classes of --latents, in the order of their letters"
            )
        if not torch.isfinite(found).all():
            raise ValueError(f"--classifier {self._file} gives numbers that are not finite; name another network")
        self._most = max(self._most, len(video))
        logits: NDArray[np.float32] = found.float().cpu().numpy()[:, None]
        return logits

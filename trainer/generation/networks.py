"""The network that judges classes, beside those of `trainer/evaluation/` whose features are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.store.files import file_sha256
from model.precision import without_tf32
from trainer.evaluation.frechet import last_line

GFVD = "gfvd"
CLASSIFIER = "classifier"


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
        self._file, self._classes, self._device = file, classes, device
        self.digest = file_sha256(file)

    @torch.no_grad()
    @without_tf32()
    def __call__(self, video: Tensor) -> NDArray[np.float32]:
        """Logits [B, 1, classes]. Raises: ValueError for a network of another call or of other classes."""
        try:
            found = self._network(video.to(self._device))
        except RuntimeError as error:
            raise ValueError(
                f"--classifier {self._file} cannot be called as network(video): {last_line(error)}"
            ) from error
        if not isinstance(found, Tensor) or found.shape != (len(video), self._classes):
            given = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"--classifier {self._file} gives {given}, not [{len(video)}, {self._classes}]: a number for each of "
                f"the {self._classes} training classes of --latents, in the order of their letters"
            )
        if not torch.isfinite(found).all():
            raise ValueError(f"--classifier {self._file} gives numbers that are not finite; name another network")
        logits: NDArray[np.float32] = found.float().cpu().numpy()[:, None]
        return logits

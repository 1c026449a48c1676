"""The network that judges classes, beside those of `trainer/evaluation/` whose features are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.store.files import file_sha256
from trainer.evaluation.frechet import last_line, network_failure
from trainer.evaluation.script_process import NoTensor, OverLimit, ScriptNetwork

GFVD = "gfvd"
CLASSIFIER = "classifier"


class Classifier:
    """A TorchScript network that takes clips [B, 3, T, S, S] in [0, 1] and gives logits [B, classes].

    Args:
        file: the TorchScript file.
        classes: in the order of its logits.
        device: where it computes.
    Raises:
        ValueError: there is no such file, it is not TorchScript, its code does more than compute, or it was not opened
            within the limits of `script_process.py`.
    """

    name = CLASSIFIER

    def __init__(self, file: Path, classes: int, device: torch.device) -> None:
        if not file.is_file():
            raise ValueError(f"--classifier {file} is no file; it names a TorchScript classifier")
        try:
            self._network = ScriptNetwork(file, device, f"--classifier {file}")
        except OverLimit:
            raise
        except torch.OutOfMemoryError as error:
            raise ValueError(f"--classifier {file}: {last_line(error)}; give it a device with more memory") from error
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"--classifier {file} is not a TorchScript file ({last_line(error)})") from error
        self._file, self._classes, self._most = file, classes, 0
        self.digest = file_sha256(file)

    def __call__(self, video: Tensor) -> NDArray[np.float32]:
        """Logits [B, 1, classes]. Raises: ValueError for a network of another call, other classes or beyond limits."""
        given = ""
        try:
            found = self._network(video)
        except NoTensor as error:
            found, given = torch.empty(0), str(error)
        except RuntimeError as error:
            named = f"--classifier {self._file}"
            raise ValueError(network_failure(named, "network(video)", error, len(video), self._most)) from error
        given = given or ("" if found.shape == (len(video), self._classes) else str(list(found.shape)))
        if given:
            raise ValueError(
                f"--classifier {self._file} gives {given}, not [{len(video)}, {self._classes}]: a number for each of "
                f"the {self._classes} training classes of --latents, in the order of their letters"
            )
        if not torch.isfinite(found).all():
            raise ValueError(f"--classifier {self._file} gives numbers that are not finite; name another network")
        self._most = max(self._most, len(video))
        logits: NDArray[np.float32] = found.numpy()[:, None]
        return logits

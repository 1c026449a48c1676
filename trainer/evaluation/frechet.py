"""Frechet distance between Gaussians, and FVD: that distance on I3D features of clips.

FVD is comparable with published numbers only on the TorchScript I3D (Kinetics-400, 400 logits) that those papers used.
So the user names the file of this network, and no other network is downloaded or taken instead. Any TorchScript network
serves, whose distances then compare with those of the same file alone; the digest of the file says which it was.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.store.counted import counted
from data_pipeline.store.files import file_sha256
from trainer.evaluation.script_process import NoTensor, OverLimit, ScriptNetwork

I3D = (
    "i3d_torchscript.pt, the Kinetics-400 I3D as TorchScript of github.com/universome/fvd-comparison "
    "(forward(video, rescale, resize, return_features) -> [B, 400])"
)
MOST_FEATURES = 8_192
"""Numbers that a network may give for a clip: a covariance takes the square of them, here half a gigabyte."""
HOW_TO_GET_I3D = f"pass --fvd {I3D}"


class GaussianStatistics:
    """Mean and covariance of feature vectors that arrive in batches, in float64, with O(d^2) memory."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.dimension = dimension
        self._sum = np.zeros(dimension)
        self._outer = np.zeros((dimension, dimension))
        self._origin: NDArray[np.float64] | None = None

    def add(self, features: NDArray[np.floating]) -> None:
        """Add features [N, d]."""
        rows = np.asarray(features, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            raise ValueError(f"expected features [N, {self.dimension}], got {list(rows.shape)}")
        if not len(rows):
            return
        if self._origin is None:
            self._origin = rows[0].copy()  # sums about a point of the data do not cancel where the mean is large
        rows = rows - self._origin
        self.count += len(rows)
        self._sum += rows.sum(axis=0)
        self._outer += rows.T @ rows

    def mean_and_covariance(self, *, population: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean [d] and covariance [d, d], unbiased; of a `population` it is divided by the count, not by one less.

        Raises:
            ValueError: fewer than two vectors were added.
        """
        if self.count < 2 or self._origin is None:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        mean = self._sum / self.count
        covariance = (self._outer - self.count * np.outer(mean, mean)) / (self.count - (0 if population else 1))
        return mean + self._origin, covariance


def frechet_distance(
    mean_a: NDArray[np.floating],
    covariance_a: NDArray[np.floating],
    mean_b: NDArray[np.floating],
    covariance_b: NDArray[np.floating],
) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |ma - mb|^2 + tr(A + B - 2 (AB)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric, so no
    general matrix root (with its imaginary parts and failures near singular matrices) is needed.

    Args:
        mean_a, mean_b: [d].
        covariance_a, covariance_b: [d, d], symmetric, positive semi-definite.
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance_a, dtype=np.float64))
    root_a = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = np.linalg.eigvalsh(root_a @ np.asarray(covariance_b, dtype=np.float64) @ root_a)
    trace = np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.sqrt(np.clip(middle, 0, None)).sum()
    offset = np.asarray(mean_a, dtype=np.float64) - np.asarray(mean_b, dtype=np.float64)
    return max(0.0, float(offset @ offset + trace))


class VideoFeatures:
    """The feature network of FVD: a TorchScript file.

    A network with an argument `return_features` is called as the I3D, with 0..255 and `rescale=True, resize=True,
    return_features=True`. Any other one is called with clips in [0, 1] alone.

    Args:
        i3d: the file.
        device: where it computes.
        option: what names the file, for messages; it stands directly before the path.
        name: of the metric.
    Attributes:
        digest: SHA-256 of the file.
    Raises:
        ValueError: there is no such file, it is not TorchScript, its code does more than compute, or it was not opened
            within the limits of `script_process.py`.
    """

    def __init__(self, i3d: str | Path, device: torch.device, option: str = "--fvd ", *, name: str = "fvd") -> None:
        if not Path(i3d).is_file():
            raise ValueError(f"{option}{i3d} is no file; it names {I3D}")
        try:
            self._network = ScriptNetwork(Path(i3d), device, f"{option}{i3d}")
        except OverLimit:
            raise
        except torch.OutOfMemoryError as error:
            raise ValueError(f"{option}{i3d}: {last_line(error)}; give it a device with more memory") from error
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{option}{i3d} is not a TorchScript file ({last_line(error)}); it names {I3D}") from error
        self._named, self.name, self._most = f"{option}{i3d}", name, 0
        self.digest = file_sha256(Path(i3d))
        self._like_i3d = "return_features" in self._network.arguments

    def __call__(self, video: Tensor) -> NDArray[np.float32]:
        """Features [B, 1, d] of clips [B, 3, T, H, W] in [0, 1].

        Raises:
            ValueError: the network cannot be called so, fails on so many clips, gives no answer within its limits of
                time and memory, or gives numbers that are not finite or not [B, d].
        """
        given = ""
        call = "network(video, rescale=True, resize=True, return_features=True)" if self._like_i3d else "network(video)"
        try:
            if self._like_i3d:
                found = self._network(video.float() * 255, rescale=True, resize=True, return_features=True)
            else:
                found = self._network(video)
        except NoTensor as error:
            found, given = torch.empty(0), str(error)
        except RuntimeError as error:
            raise ValueError(network_failure(self._named, call, error, len(video), self._most)) from error
        given = given or ("" if len(found) == len(video) else str(list(found.shape)))
        if given:
            raise ValueError(
                f"{self._named} gives {given} for {counted(len(video), 'clip')}, not [B, d]; name another network"
            )
        if found.shape[1] > MOST_FEATURES:
            raise ValueError(
                f"{self._named} gives {found.shape[1]} numbers for a clip, and the covariance of more than "
                f"{MOST_FEATURES} is not computed; name another network"
            )
        if not torch.isfinite(found).all():
            raise ValueError(f"{self._named} gives numbers that are not finite; name another network")
        self._most = max(self._most, len(video))
        features: NDArray[np.float32] = found.numpy()[:, None]
        return features


def network_failure(named: str, call: str, error: Exception, clips: int, most: int) -> str:
    """The error that is told where a TorchScript network raises one: one line with the remedy.

    Args:
        named: the option and the file.
        call: how it was called.
        error: what it raised.
        clips: those that it was given together.
        most: the most clips that it has taken together before.
    """
    text = f"{named} cannot be called as {call} on {counted(clips, 'clip')} together: {last_line(error)}"
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        return f"{text}; give it a device with more memory, or fewer clips together where that can be set"
    if 0 < most < clips:
        return (
            f"{text}; it has taken {most} before, so it is made for few clips: name a network that takes any number, "
            "because a trace may keep the number that it was made with"
        )
    return f"{text}; name another network"


def last_line(error: Exception) -> str:
    """What torch says at the end of an error of a TorchScript network, whose lines before show its source."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def distance_of(real: NDArray[np.floating], fake: NDArray[np.floating]) -> float:
    """The Frechet distance of two sets of features, both [N, d] or [N, n, d] with N at least 2."""
    gaussians = []
    for features in (real, fake):
        statistics = GaussianStatistics(features.shape[-1])
        statistics.add(features.reshape(-1, features.shape[-1]))
        gaussians.append(statistics.mean_and_covariance())
    return frechet_distance(*gaussians[0], *gaussians[1])


def too_few(count: int, dimension: int, what: str = "clips") -> str:
    """Why a distance of so few feature vectors is refused, and how to get it; "" where there are enough."""
    remark = few_vectors(count, dimension, what)
    return f"{remark}; measure more, or pass --few-clips for a value that compares with nothing" if remark else ""


def few_vectors(count: int, dimension: int, what: str = "clips") -> str:
    """What a reader must know of a distance from too few feature vectors; empty where there are enough.

    Args:
        count: feature vectors.
        dimension: numbers in each.
        what: the things that the vectors belong to, for the text.
    """
    if count > dimension:
        return ""
    return (
        f"{count} {what} for {dimension} feature dimensions: the covariance is singular and the distance biased "
        "upwards; published FVD uses 2048 clips or more"
    )

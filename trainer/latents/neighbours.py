"""Which samples of a dataset lie nearest to others, measured between latents: what is alike, and what was memorised."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data_pipeline.read.latent_dataset import LatentDataset, LatentItem


def points(structure: Tensor, dynamics: Tensor) -> Tensor:
    """Latents as points whose squared distance counts both latents alike, whatever their numbers of values.

    Args:
        structure: normalised, [N, d_S, n_q, h_S, w_S].
        dynamics: normalised, [N, d_D, f, w_D + h_D].
    Returns:
        float64 [N, n_S + n_D]. The squared distance of two points is the mean squared difference of their structures
        plus that of their dynamics: 0 for the same latents, and about 4 for two that have nothing in common.
    """
    parts = [values.double().flatten(1) for values in (structure, dynamics)]
    return torch.cat([part / part.shape[1] ** 0.5 for part in parts], 1)


def features(items: Sequence[LatentItem]) -> Tensor:
    """The `points` of samples that were read with `LatentDataset(..., normalize=True)`."""
    return points(*(torch.stack([item[name] for item in items]) for name in ("structure", "dynamics")))


def nearest(queries: LatentDataset, among: LatentDataset, count: int) -> tuple[Tensor, Tensor]:
    """The samples of `among` that lie nearest to each of `queries`; see `nearest_points`."""
    return nearest_points(features(queries.__getitems__(range(len(queries)))), among, count)


def nearest_points(
    asked: Tensor, among: LatentDataset, count: int, progress: Callable[[int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """The samples of `among` that lie nearest to each of some points, nearest first.

    The distances are exact sums of squares and not the difference of products, which would lose the small ones. The
    samples of `among` are read a thousand at a time.

    Args:
        asked: `points` [Q, n].
        among: opened with normalize=True.
        count: how many; all where `among` has fewer.
        progress: called with the number of samples of `among` that are done.
    Returns:
        Squared distances, float64 [Q, k], and numbers in `among`, int64 [Q, k].
    """
    distances, numbers = torch.empty(len(asked), 0).double(), torch.empty(len(asked), 0).long()
    for begin in range(0, len(among), 1000):
        block = range(begin, min(begin + 1000, len(among)))
        found = torch.cdist(
            asked, features(among.__getitems__(block)), compute_mode="donot_use_mm_for_euclid_dist"
        ).square()
        distances = torch.cat([distances, found], 1)
        numbers = torch.cat([numbers, torch.tensor(block).expand(len(asked), -1)], 1)
        distances, best = distances.topk(min(count, distances.shape[1]), largest=False)
        numbers = numbers.gather(1, best)
        if progress is not None:
            progress(block.stop)
    return distances, numbers

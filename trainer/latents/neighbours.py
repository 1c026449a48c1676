"""Which samples of a dataset lie nearest to others, measured between latents: what is alike, and what was memorised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data_pipeline.read.latent_dataset import LatentDataset, LatentItem


def features(items: Sequence[LatentItem]) -> Tensor:
    """Latents as points whose squared distance counts both latents alike, whatever their numbers of values.

    Args:
        items: normalised samples (`LatentDataset(..., normalize=True)`).
    Returns:
        float64 [N, n_S + n_D]. The squared distance of two points is the mean squared difference of their structures
        plus that of their dynamics.
    """
    parts = [torch.stack([item[name] for item in items]).double().flatten(1) for name in ("structure", "dynamics")]
    return torch.cat([part / part.shape[1] ** 0.5 for part in parts], 1)


def nearest(queries: LatentDataset, among: LatentDataset, count: int) -> tuple[Tensor, Tensor]:
    """The samples of `among` that lie nearest to each of `queries`, nearest first.

    The distances are exact sums of squares and not the difference of products, which would lose the small ones. The
    samples of `among` are read a thousand at a time.

    Args:
        queries, among: both opened with normalize=True.
        count: how many; all where `among` has fewer.
    Returns:
        Squared distances, float64 [Q, k], and numbers in `among`, int64 [Q, k].
    """
    asked = features(queries.__getitems__(range(len(queries))))
    found: list[Tensor] = []
    for begin in range(0, len(among), 1000):
        block = features(among.__getitems__(range(begin, min(begin + 1000, len(among)))))
        found.append(torch.stack([(block - point).square().sum(1) for point in asked]))
    distances, numbers = torch.cat(found, 1).topk(min(count, len(among)), largest=False)
    return distances, numbers

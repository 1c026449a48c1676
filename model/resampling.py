"""A line of samples brought to another number of samples, as a matrix."""

import torch
from torch import Tensor


def resampling(before: int, after: int) -> Tensor:
    """The matrix [after, before] in float64 on the CPU that takes `before` samples of a line to `after` samples of it.

    To more samples it interpolates linearly between sample centres and repeats the ends; to fewer it is the
    pseudo-inverse of that, so that there and back is the identity. A constant stays that constant either way.
    """
    if after < before:
        return torch.linalg.pinv(resampling(after, before))
    place = ((torch.arange(after, dtype=torch.float64, device="cpu") + 0.5) * before / after - 0.5).clamp(0, before - 1)
    lower = place.floor().long().clamp(max=max(before - 2, 0))
    upper = (lower + 1).clamp(max=before - 1)
    share = (place - lower)[:, None]
    identity = torch.eye(before, dtype=torch.float64, device="cpu")
    return (1 - share) * identity[lower] + share * identity[upper]

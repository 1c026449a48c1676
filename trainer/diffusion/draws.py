"""What a step draws for one clip: a time, noise, and whether the condition is dropped.

All of it follows from the run's seed, the step, and the clip's own key, and from nothing else. So no state is saved,
and a clip is treated the same whatever the number of ranks, the micro-batch and the other clips. A clip that stands
twice in one batch, which only the border between two epochs brings about, is drawn the same both times.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.read.order import draw
from model.dit_config import LatentSpace
from model.network import Latents

# Purposes of `order.draw`, which has some small ones itself.
PURPOSE_TRAINING, PURPOSE_VALIDATION = 101, 102


class Drawn(NamedTuple):
    """Uniform numbers of one clip.

    Attributes:
        quantile: in (0, 1), of the time.
        drop: in (0, 1); the condition is dropped where it is below the share of drops.
        seed: of the noise, in [0, 2**63).
    """

    quantile: float
    drop: float
    seed: int


def draw_clip(seed: int, step: int, key: str, purpose: int = PURPOSE_TRAINING) -> Drawn:
    """The draws of one clip in one step; Philox at the counter (step, the first 16 bytes of SHA-256 of the key)."""
    digest = sha256(key.encode()).digest()
    place = step, int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
    quantile, drop, noise = (int(word) for word in draw(seed, purpose, place, 3))
    return Drawn(_uniform(quantile), _uniform(drop), noise >> 1)


def _uniform(word: int) -> float:
    """A 64-bit word as the middle of one of 2**52 equal parts of (0, 1), so that it is neither 0 nor 1."""
    return ((word >> 12) + 0.5) / 2**52


def draw_noise(seeds: Sequence[int], space: LatentSpace, device: torch.device) -> Latents:
    """Standard normal numbers in the shapes of the latents, fp32, [len(seeds), ...]; one generator for each clip."""
    structure = torch.empty(len(seeds), *space.structure_shape, device=device)
    dynamics = torch.empty(len(seeds), *space.dynamics_shape, device=device)
    for row, seed in enumerate(seeds):
        generator = torch.Generator(device).manual_seed(seed)
        structure[row].normal_(generator=generator)
        dynamics[row].normal_(generator=generator)
    return Latents(structure, dynamics)


def are_dropped(drawn: Sequence[Drawn], share: float) -> Tensor:
    """Whose condition is dropped, bool [B]."""
    return torch.tensor([clip.drop < share for clip in drawn])

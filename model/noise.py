"""The random numbers of one draw of the latents, made outside the model.

So the model itself draws nothing but dropout, and a compiler sees it as one graph.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import VidTwinConfig

Source = torch.Generator | Sequence[torch.Generator] | None
"""One random generator for each clip, one for all clips, or None for torch's own."""


class Noise(NamedTuple):
    """Standard normal numbers, fp32: [B, d_S, n_q, h_S, w_S], [B, d_D, f, w_D], [B, d_D, f, h_D].

    A tuple, so that ZeRO-3's hooks find its tensors in a module's input.
    """

    structure: Tensor
    dynamics_w: Tensor
    dynamics_h: Tensor


def draw_noise(
    config: VidTwinConfig, clips: int, frames: int, device: torch.device | str = "cpu", source: Source = None
) -> Noise:
    """Numbers for one draw of the latents of a batch.

    Args:
        config: the model's.
        clips, frames: B, and f of the clips, which may be fewer than `config.frames`.
        device: where the numbers are drawn, which must be the device of the generators.
        source: with one generator for each clip, a clip's numbers do not depend on the other clips of its batch.
    Raises:
        ValueError: another number of generators than clips.
    """
    channels, *places = config.structure_shape
    d_dynamics, _, sides = config.dynamics_shape
    # Channels lie last in memory, as the convolutions leave the structure's moments, and are drawn in that order.
    structure = torch.empty(clips, *places, channels, device=device).movedim(-1, 1)
    along_w, along_h = (torch.empty(clips, d_dynamics, frames, sides // 2, device=device) for _ in range(2))
    for numbers in (structure, along_w, along_h):
        _draw(numbers, source)
    return Noise(structure, along_w, along_h)


def _draw(numbers: Tensor, source: Source) -> None:
    """Fill [B, ...] in place."""
    if isinstance(source, Sequence):
        for row, generator in zip(numbers, source, strict=True):
            row.normal_(generator=generator)
    else:
        numbers.normal_(generator=source)

"""A tiny DiT, latents for it, and its conditions."""

from dataclasses import replace
from typing import Any

import torch

from model.dit import DiT
from model.dit_config import Conditioning, DiTConfig, LatentSpace
from model.dit_parts import ClassCondition, Condition, TextCondition
from model.latent_statistics import ChannelStatistics
from model.network import Latents

SMALL = DiTConfig(width=384, depth=12, heads=6)
"""The DiT of configs/diffusion/small.yaml."""
TINY = DiTConfig(width=24, depth=2, heads=4, structure_patch=(2, 1, 3), dynamics_patch=(2, 3))
SPACE = LatentSpace(
    structure_shape=(3, 4, 2, 3), dynamics_shape=(2, 4, 6), classes=("run", "jump"), text_width=5, text_empty_tokens=2
)
STATISTICS = {
    "structure": ChannelStatistics((0.5, -1.0, 2.0), (2.0, 0.25, 1.5)),
    "dynamics_w": ChannelStatistics((3.0, -4.0), (0.5, 8.0)),
    "dynamics_h": ChannelStatistics((-1.0, 10.0), (4.0, 0.125)),
}


def lively(config: DiTConfig, **more: Any) -> DiT:
    """A DiT in fp64 none of whose weights is 0."""
    torch.manual_seed(0)
    model = DiT(config, SPACE, statistics=STATISTICS, **more).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def latents(clips: int = 2) -> Latents:
    source = torch.Generator().manual_seed(1)
    shapes = SPACE.structure_shape, SPACE.dynamics_shape
    return Latents(*(torch.randn(clips, *shape, generator=source, dtype=torch.float64) for shape in shapes))


def conditioned(kind: str) -> tuple[DiTConfig, Condition]:
    if kind == "class":
        return replace(TINY, condition=Conditioning.class_, class_width=7), ClassCondition(torch.tensor([1, 0]))
    if kind == "text":
        mask = torch.tensor([[True, True, False], [True, True, True]])
        tokens = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        return replace(TINY, condition=Conditioning.text), TextCondition(tokens, mask, torch.tensor([True, True]))
    return TINY, None


TIMES = torch.tensor([3.0, 900.0], dtype=torch.float64)

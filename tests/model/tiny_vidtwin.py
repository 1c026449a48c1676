"""A small VidTwin with weights that matter, and videos and noise for it."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.config import DynamicsConfig, StructureConfig, VidTwinConfig
from model.noise import Noise, draw_noise
from model.vidtwin import VidTwin

TINY = VidTwinConfig(
    frames=4,
    image_size=40,
    patch_size=8,
    width=32,
    depth=2,
    heads=4,
    structure=StructureConfig(queries=3, query_width=16, query_heads=2, query_layers=2, query_hidden=24, conv_width=8),
    dynamics=DynamicsConfig(channels=6),
)


def tiny(**changes: object) -> VidTwin:
    """A small model whose temporal attention and last layer matter, unlike a fresh one's."""
    torch.manual_seed(0)
    model = VidTwin(replace(TINY, **changes))  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3 / parameter.shape[-1] ** 0.25)
    return model


def video_for(model: VidTwin, batch: int = 2) -> Tensor:
    size = model.config.image_size
    return torch.rand(batch, 3, model.config.frames, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def noise_for(model: VidTwin, seed: int, batch: int = 2) -> Noise:
    return draw_noise(model.config, batch, model.config.frames, source=torch.Generator().manual_seed(seed))


@dataclass(kw_only=True)
class WithModel:
    """A configuration with a model in it, as training has."""

    model: VidTwinConfig = field(default_factory=VidTwinConfig)

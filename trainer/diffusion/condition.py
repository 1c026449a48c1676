"""From a batch to what the network takes: latents on the device, and their condition."""

from __future__ import annotations

from typing import cast

import torch

from model.dit import DiT
from model.dit_config import Conditioning
from model.dit_parts import ClassCondition, Condition, TextCondition
from model.network import Latents
from trainer.diffusion.data import LatentBatch, TextBatch


def latents_of(batch: LatentBatch, device: torch.device) -> Latents:
    """The latents of a batch on the device, as they are stored."""
    return Latents(
        batch.structure.to(device, non_blocking=True),
        batch.dynamics.to(device, non_blocking=True),
    )


def condition_of(batch: LatentBatch, network: DiT, device: torch.device) -> Condition:
    """What the network is told of the clips of a batch.

    Raises:
        ValueError: a clip of a class that the network does not know.
    """
    kind = network.config.condition
    if kind is Conditioning.none:
        return None
    if kind is Conditioning.class_:
        return ClassCondition(torch.tensor(network.class_numbers(batch.labels), device=device))
    text = cast(TextBatch, batch)
    given = torch.ones(len(text.text), dtype=torch.bool, device=device)
    return TextCondition(text.text.to(device), text.text_mask.to(device), given)

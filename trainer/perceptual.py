"""The perceptual networks that training and validation measure with, by their names in the settings."""

from __future__ import annotations

import torch

from model.lpips import LPIPS
from model.st_lpips import STLPIPS
from trainer.config.objective import LossConfig, Perceptual

NETWORKS: dict[Perceptual, type[LPIPS]] = {Perceptual.lpips: LPIPS, Perceptual.st_lpips: STLPIPS}


def load_perceptual(loss: LossConfig, device: torch.device) -> LPIPS | None:
    """The network of `loss.perceptual` with its weights, on the device; None for none.

    Raises:
        ValueError: its weights are missing, or the file holds something else.
    """
    return load_network(loss.perceptual, loss.lpips_weights, device)


def load_network(name: Perceptual, lpips_weights: str, device: torch.device) -> LPIPS | None:
    """The network of that name with its weights, on the device; None for none.

    Args:
        lpips_weights: file of the weights of LPIPS; those of ST-LPIPS come with their package.
    Raises:
        ValueError: its weights are missing, or the file holds something else.
    """
    if name is Perceptual.none:
        return None
    try:
        network = LPIPS.from_files(lpips_weights) if name is Perceptual.lpips else STLPIPS.from_package()
    except (ValueError, FileNotFoundError) as error:
        source = f"loss.lpips_weights={lpips_weights}" if name is Perceptual.lpips else "st_lpips"
        raise ValueError(f"{source}: {error}") from error
    return network.to(device)


def untrained_perceptual(loss: LossConfig, device: torch.device) -> LPIPS | None:
    """The same with random weights, which take as long and as much memory as the true ones."""
    with torch.device(device):
        return NETWORKS[loss.perceptual]() if loss.perceptual in NETWORKS else None

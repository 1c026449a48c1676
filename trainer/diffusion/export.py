"""The DiT of any checkpoint as a model directory, in one process without ranks, GPU or DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import torch

from data_pipeline.store.files import atomic_folder
from model.dit import DiT
from model.export.dit_card import write_dit_card
from trainer.checkpoint.export import OpenCheckpoint
from trainer.checkpoint.files import read_state
from trainer.config.diffusion import DiffusionConfig
from trainer.config.loader import load_config
from trainer.diffusion.same_latents import LATENTS, space_of_identity

ENGINE = "dit"
"""The engine that holds a DiT."""


def write_dit(dit: DiT, folder: Path) -> None:
    """Write a DiT and its card into a model directory."""
    dit.save_pretrained(folder)
    write_dit_card(folder, dit.description, dit.provenance)


def export_dit(found: OpenCheckpoint, output: Path) -> None:
    """Write the DiT of a checkpoint, as the run itself exports it: the same files, byte for byte.

    Args:
        found: a checkpoint that holds the engine `ENGINE`.
        output: a directory that does not exist or is empty.
    """
    config = load_config(DiffusionConfig, [found.directory / "config.yaml"], [])
    state = found.wanted(ENGINE)
    empty_caption = state.get("context.empty")
    text_shape = tuple(empty_caption.shape) if empty_caption is not None else (0, 0)
    order = read_state(found.directory)["order"]
    with torch.random.fork_rng(devices=[]):
        dit = DiT(config.dit, space_of_identity(order[LATENTS], text_shape), config.process)
    dit.load_state_dict(state)
    dit.provenance = found.provenance
    with atomic_folder(output) as folder:
        write_dit(dit, folder)

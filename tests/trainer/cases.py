"""Tiny training configurations, and batches without a dataset."""

import copy
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from data_pipeline.read.loader import Batch, Position
from model.config import DiscriminatorConfig, VidTwinConfig
from tests.trainer.reference import Recipe
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

MODEL: dict[str, Any] = {
    "frames": 8,
    "image_size": 16,
    "patch_size": 4,
    "width": 32,
    "depth": 1,
    "heads": 4,
    "structure": {"queries": 4, "query_width": 16, "query_layers": 1, "query_hidden": 32, "query_heads": 4}
    | {"channels": 4, "downsamplings": 1, "conv_width": 8},
    "dynamics": {"channels": 4, "downsamplings": 1},
}
STEPS = 6
GLOBAL_BATCH = 4


def tiny_recipe(**changes: Any) -> Recipe:
    """The reference's view of `tiny_config`."""
    return replace(copy.deepcopy(_usual_recipe()), **changes)  # callers change what they get


@cache
def _usual_recipe() -> Recipe:
    model = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(VidTwinConfig), MODEL))
    assert isinstance(model, VidTwinConfig)
    return Recipe(model=model, discriminator=DiscriminatorConfig(width=16, layers=2))


def tiny_config(output: str, *words: str, recipe: Recipe | None = None) -> TrainConfig:
    """The trainer's configuration of a recipe; `words` are overrides."""
    recipe = recipe or tiny_recipe()
    settings: dict[str, Any] = {
        "steps": STEPS,
        "seed": recipe.seed,
        "precision": "fp32",
        "loss.perceptual": "none",
        "loss.kl_weight": recipe.kl_weight,
        "loss.kl_warmup": recipe.kl_warmup,
        "loss.logvar": recipe.logvar,
        "loss.learn_logvar": recipe.learn_logvar,
        "gan.generator_loss": recipe.generator_loss,
        "data.shards": "unused",
        "data.frames": 8,
        "data.image_size": MODEL["image_size"],
        "data.global_batch": GLOBAL_BATCH,
        "discriminator.width": recipe.discriminator.width,
        "discriminator.layers": recipe.discriminator.layers,
        "discriminator.norm": recipe.discriminator.norm,
        "gan.start": recipe.start,
        "gan.warmup": recipe.alone,
        "gan.ramp": recipe.ramp,
        "gan.weight": recipe.weight,
        "gan.lecam_weight": recipe.lecam_weight,
        "gan.lecam_decay": recipe.lecam_decay,
        "gan.local_weight": recipe.local_weight,
        "optim.clip": recipe.clip,
        "optim.decay": recipe.decay,
        "zero.persistence_threshold": 0,
    }
    for network in ("generator", "discriminator"):
        settings |= {
            f"optim.{network}.name": "adamw",
            f"optim.{network}.lr": recipe.lr,
            f"optim.{network}.warmup": recipe.warmup,
            f"optim.{network}.schedule": "constant",
            f"optim.{network}.weight_decay": recipe.weight_decay,
            f"optim.{network}.eps": recipe.eps,
        }
    file = _settings_file(tuple(f"{key}={_word(value)}" for key, value in settings.items()))
    return load_config(TrainConfig, [file], [f"output={output}", *words])


@cache
def _settings_file(words: tuple[str, ...]) -> Path:
    """Settings as a file, because merging it once is faster than merging each word.

    The file has a name on no disk: ranks are killed, and forked ones skip what is registered for the end.
    """
    settings = OmegaConf.merge({"model": MODEL}, OmegaConf.from_dotlist(list(words)))
    file = os.memfd_create("settings.yaml")
    Path(f"/proc/self/fd/{file}").write_text(OmegaConf.to_yaml(settings))
    return Path(f"/proc/self/fd/{file}")


def global_batches(steps: int = STEPS, size: int = GLOBAL_BATCH, side: int = MODEL["image_size"]) -> list[torch.Tensor]:
    """Moving waves, another one for each clip: fp32 [G, 3, 8, side, side] in [-1, 1]."""
    t, y, x = torch.meshgrid(*(torch.arange(float(length)) for length in (8, side, side)), indexing="ij")
    batches = []
    for step in range(steps):
        clips = []
        for place in range(size):
            phase = 1.7 * place + 0.9 * step
            colours = [
                torch.sin(0.2 * x + 0.3 * (place + 1) * t + phase + c) * torch.cos(0.15 * y - c) for c in range(3)
            ]
            clips.append(torch.stack(colours))
        batches.append(torch.stack(clips))
    return batches


def mixed_batches() -> list[torch.Tensor]:
    """The same, each cut to another number of frames."""
    lengths = (8, 2, 5, 1, 8, 3)
    return [video[:, :, :length] for video, length in zip(global_batches(), lengths, strict=True)]


def as_batch(video: torch.Tensor) -> Batch:
    """A batch as the loader would give it, but with frames that are floats already."""
    names = [str(place) for place in range(len(video))]
    return Batch(
        video=video,
        captions=names,
        labels=names,
        keys=names,
        indices=torch.arange(len(video)),
        position=Position(0, 0),
    )


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

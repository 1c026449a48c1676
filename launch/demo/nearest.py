"""How near the generated clips are to the training clips, beside how near the autoencoder itself comes to these.

T frames of S x S pixels, values in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.read.config import DataConfig
from data_pipeline.read.latent_dataset import LatentDataset
from data_pipeline.read.sweep import iterate_clips
from model.vidtwin import VidTwin
from trainer.evaluation.metrics import frames_of, psnr
from trainer.latents.decode import decode_batch
from trainer.latents.named_latents import latents_of_file

BATCH = 16


@dataclass
class Generated:
    """One generated clip and the training clip that is nearest to it.

    Attributes:
        asked: the class that was asked for; empty without classes.
        nearest: key of the training window.
        label: its class.
        videos: the generated clip, the training window and its reconstruction, [3, T, S, S] each.
        psnr: dB between the generated clip and the training window.
        reconstruction: dB between the reconstruction and the training window.
    """

    asked: str
    nearest: str
    label: str
    videos: tuple[Tensor, Tensor, Tensor]
    psnr: float
    reconstruction: float


def find_nearest(
    model: VidTwin, samples: Sequence[tuple[str, Path]], latents: Path, shards: Path, fps: Fraction
) -> list[Generated]:
    """Compare generated latents with all training windows that were encoded, pixel by pixel.

    Args:
        model: the autoencoder.
        samples: class and .safetensors file of each generated clip.
        latents: dataset of the training windows.
        shards: the dataset of clips that it was encoded from.
        fps: frames a second.
    """
    dataset = LatentDataset(str(latents), "train")
    windows = windows_of(dataset.keys, shards, "train", model.config.frames, model.config.image_size)
    found = []
    for asked, file in samples:
        (named,) = latents_of_file(str(file), model.config, fps)
        video = decode_batch(model, named.structure[None], named.dynamics[None])[0].cpu()
        number = int((windows - video).square().flatten(1).mean(1).argmin())
        item, window = dataset[number], windows[number]
        reconstruction = decode_batch(model, item["structure"][None], item["dynamics"][None])[0].cpu()
        found.append(
            Generated(
                asked=asked,
                nearest=item["key"],
                label=item["label"],
                videos=(video, window, reconstruction),
                psnr=decibels(video, window),
                reconstruction=decibels(reconstruction, window),
            )
        )
    return found


def windows_of(keys: Sequence[str], shards: Path, split: str, frames: int, size: int) -> Tensor:
    """The pixels of encoded windows, [N, 3, T, S, S].

    Args:
        keys: of the samples: the clip's key, the number of the first frame, and an `m` for a mirrored twin.
        shards: the dataset of clips.
        split: of the samples.
        frames, size: T and S.
    """
    stills: dict[str, dict[int, Tensor]] = {}
    config = DataConfig(shards=str(shards), split=split, frames=1, image_size=size, workers=0)
    for clips in iterate_clips(config, split, windows="all", batch_size=BATCH):
        for still, key, start in zip(clips.video, clips.keys, clips.starts, strict=True):
            stills.setdefault(key, {})[start] = still[:, 0].float() / 255
    windows = []
    for key in keys:
        clip, _, place = key.rpartition("-f")
        first = int(place.rstrip("m"))
        window = torch.stack([stills[clip][first + number] for number in range(frames)], dim=1)
        windows.append(window.flip(-1) if place.endswith("m") else window)
    return torch.stack(windows)


def decibels(one: Tensor, other: Tensor) -> float:
    """Mean PSNR of the frames of two videos [3, T, S, S]."""
    return psnr(frames_of(one[None]), frames_of(other[None])).mean().item()

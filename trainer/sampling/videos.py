"""Videos of samples, by the autoencoder whose latents they are."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch

from model.dit_config import LatentSpace
from model.vidtwin import VidTwin
from trainer.evaluation.run import load_model
from trainer.latents.decode import TENSOR_FILE, latents_of_file, write_videos
from trainer.latents.encoder import identify, model_directory


def open_decoder(place: str, space: LatentSpace, device: torch.device) -> VidTwin:
    """The model that decodes latents of `space`.

    Args:
        place: model directory, or its s3:// address.
    Raises:
        ValueError: it is another model than the one that encoded the latents of `space`.
        OSError: there is none, or the storage fails.
    """
    with model_directory(place) as folder:
        identity = identify(folder)
        if space.autoencoder and identity.weights != space.autoencoder:
            raise ValueError(
                f"--decoder {place} has weights of the digest {identity.weights}, and --model makes latents of the "
                f"model {space.autoencoder}; name that one"
            )
        return load_model(folder, device)


def decode_samples(decoder: VidTwin, names: Sequence[str], output: Path, fps: Fraction) -> int:
    """Write NAME.mp4 beside each NAME.safetensors that has none yet, and return their number.

    Raises:
        ValueError: latents of another shape than the decoder's, or without pixels.
    """
    missing = [name for name in names if not (output / f"{name}.mp4").exists()]
    files = (str(output / f"{name}{TENSOR_FILE}") for name in missing)
    latents = (item for file in files for item in latents_of_file(file, decoder.config, fps))
    return write_videos(decoder, latents, output)

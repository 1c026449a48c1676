"""Videos of samples, by the autoencoder whose latents they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import torch

from model.dit_config import LatentSpace
from model.vidtwin import VidTwin
from trainer.evaluation.run import load_model
from trainer.latents.decode import TENSOR_FILE, latents_of_file, write_videos
from trainer.latents.encoder import identify, model_directory
from trainer.sampling.generate import Wanted, check_settings, refuse_other
from trainer.sampling.grid import Row
from trainer.team import ALONE, Team

SETTINGS_FILE = "videos.json"


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


def decode_samples(
    decoder: VidTwin,
    names: Sequence[str],
    output: Path,
    fps: Fraction,
    *,
    progress: Callable[[int], None] | None = None,
    team: Team = ALONE,
) -> int:
    """Write NAME.mp4 beside each NAME.safetensors that has none yet, and return their number; every rank calls it.

    Args:
        progress: called on the main rank with the number of videos written.
        team: the processes that divide the videos among themselves.
    Raises:
        ValueError: latents of another shape than the decoder's, or without pixels, or `output` holds videos of other
            frames a second.
        StoreError: the disk is full.
    """

    def look() -> list[str]:
        check_settings(output / SETTINGS_FILE, _settings(fps), "videos")
        return [name for name in names if not (output / f"{name}.mp4").exists()]

    def write(some: Sequence[str]) -> None:
        files = (str(output / f"{name}{TENSOR_FILE}") for name in some)
        write_videos(decoder, (item for file in files for item in latents_of_file(file, decoder.config, fps)), output)

    missing = team.of_main(look)
    team.work(missing, 1, write, progress)
    return len(missing)


def refuse_other_videos(output: Path, fps: Fraction) -> None:
    """Refuse a folder with videos of other frames a second, before samples are made; nothing is written.

    Raises:
        ValueError: naming both.
    """
    refuse_other(output / SETTINGS_FILE, _settings(fps), "videos")


def _settings(fps: Fraction) -> dict[str, str]:
    return {"fps": str(fps)}


def rows_of(wanted: Sequence[Wanted]) -> list[Row]:
    """The rows of the grid page: one for each class, in the order of `wanted`."""
    videos: dict[str, list[str]] = {}
    for item in wanted:
        videos.setdefault(item.label, []).append(f"{item.name}.mp4")
    return [Row(title, names) for title, names in videos.items()]

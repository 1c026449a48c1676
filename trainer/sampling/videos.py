"""Videos of samples, by the autoencoder whose latents they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import torch

from data_pipeline.outside.naming import naming
from model.dit_config import LatentSpace
from model.vidtwin import VidTwin
from trainer.evaluation.run import load_model
from trainer.latents.decode import write_videos
from trainer.latents.encoder import identify, model_directory
from trainer.latents.named_latents import TENSOR_FILE, latents_of_file
from trainer.latents.sample_metadata import check_made, made_again, read_sample_metadata
from trainer.sampling.account import Account
from trainer.sampling.generate import Wanted
from trainer.sampling.grid import Row
from trainer.team import ALONE, Team

VIDEOS = Account(name="videos.json", ending=".mp4", what="videos")


def open_decoder(place: str, space: LatentSpace, device: torch.device) -> VidTwin:
    """The model that decodes latents of `space`.

    Args:
        place: model directory, or its s3:// address.
    Raises:
        ValueError: it is another model than the one that encoded the latents of `space`.
        OSError: there is none, or the storage fails.
    """
    with naming("--decoder "), model_directory(place) as folder:
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
    frames: int,
    progress: Callable[[int], None] | None = None,
    team: Team = ALONE,
) -> int:
    """Write NAME.mp4 beside each NAME.safetensors that has no whole one, and return their number; every rank calls it.

    Args:
        frames: of each sample; an .mp4 with fewer is not whole.
        progress: called on the main rank with the number of videos written.
        team: the processes that divide the videos among themselves.
    Raises:
        ValueError: a sample is damaged, has another shape than the decoder's or no pixels, or `output` holds videos of
            other frames a second.
        StoreError: the disk is full.
    """

    def look() -> list[str]:
        VIDEOS.begin(output, _settings(fps))
        return [name for name in names if not _is_whole(output / f"{name}{VIDEOS.ending}", frames)]

    def write(some: Sequence[str]) -> None:
        for name in some:
            file = output / f"{name}{TENSOR_FILE}"
            try:
                write_videos(decoder, latents_of_file(str(file), decoder.config, fps), output)
            except ValueError as error:
                raise ValueError(made_again(str(error), file)) from error

    missing = team.of_main(look)
    team.work(missing, 1, write, progress)
    return len(missing)


def _is_whole(file: Path, frames: int) -> bool:
    """Whether a file is a video of so many frames. An empty or cut one, which something else has left, is not."""
    if not file.exists():
        return False
    check_made(file)
    try:
        with av.open(str(file.absolute())) as opened:  # a name with a colon is no address then
            return sum(packet.size > 0 for packet in opened.demux(video=0)) == frames
    except (av.FFmpegError, IndexError):  # it is no video, or it has no track of pictures
        return False


def refuse_other_videos(output: Path, fps: Fraction) -> None:
    """Refuse a folder with videos of other frames a second, before samples are made; nothing is written.

    Raises:
        ValueError: naming both.
    """
    VIDEOS.check(output, _settings(fps))


def _settings(fps: Fraction) -> dict[str, str]:
    return {"fps": str(fps)}


def rows_of(output: Path, wanted: Sequence[Wanted]) -> list[Row]:
    """The rows of the grid page: one for each class or prompt of the folder, with all its videos.

    Args:
        output: the folder, which may hold samples of earlier commands.
        wanted: the samples of this command, whose rows come first, in this order; the others follow by their names.
    Raises:
        ValueError: a sample is damaged.
    """
    videos: dict[str, list[tuple[int, str]]] = {item.label: [] for item in wanted}
    for file in VIDEOS.files(output):
        sample = file.with_suffix(TENSOR_FILE)
        if sample.exists():
            found = read_sample_metadata(sample)
            videos.setdefault(found.label, []).append((found.number, file.name))
    return [Row(title, [name for _, name in sorted(found)]) for title, found in videos.items()]

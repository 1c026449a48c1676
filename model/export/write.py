"""Writes a model as a directory of any of the forms."""

from __future__ import annotations

from pathlib import Path

from model.export.card import write_card
from model.export.diffusers_directory import write_diffusers
from model.export.formats import Format
from model.export.graphs import resized, write_onnx, write_torch_export
from model.export.latent_statistics import LatentStatistics
from model.network import VidTwinNetwork
from model.vidtwin import VidTwin


def write(
    vidtwin: VidTwin,
    folder: Path,
    form: Format,
    frames: int | None = None,
    image_size: int | None = None,
    statistics: LatentStatistics | None = None,
) -> None:
    """Write the files of a form and its model card into an empty folder.

    Args:
        vidtwin: fp32, on the host, in evaluation mode.
        frames, image_size: of the graphs' clips, T and H = W in pixels; None = those of the model. Only for graphs.
        statistics: of the latents, only for diffusers.
    Raises:
        ValueError: clips of a size that the model cannot have; the message names the key.
    """
    network: VidTwinNetwork = vidtwin
    if form is Format.model:
        vidtwin.save_pretrained(folder)
    elif form is Format.diffusers:
        write_diffusers(vidtwin, folder, statistics)
    else:
        network = resized(vidtwin, frames, image_size)
        (write_onnx if form is Format.onnx else write_torch_export)(network, folder)
    write_card(folder, form, network.config, vidtwin.provenance)

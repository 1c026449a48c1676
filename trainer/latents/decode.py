"""From latents back to videos.

Shapes: B videos, structure [B, d_S, n_q, h_S, w_S], dynamics [B, d_D, f, w_D + h_D], T = f frames of S x S pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.read.normalization import Normalization
from model.network import Latents
from model.precision import without_tf32
from model.vidtwin import VidTwin
from trainer.evaluation.metrics import to_unit
from trainer.evaluation.pictures import VideoWriter
from trainer.evaluation.reconstruction import to_frames
from trainer.latents.named_latents import NamedLatents, require_finite


@torch.no_grad()
@without_tf32()
def decode_batch(
    model: VidTwin, structure: Tensor, dynamics: Tensor, *, normalization: Normalization | None = None
) -> Tensor:
    """The videos of latents.

    Args:
        model: in evaluation mode.
        structure: [B, d_S, n_q, h_S, w_S].
        dynamics: [B, d_D, f, w_D + h_D].
        normalization: by which the latents were normalised, which is undone first; None: they were not.
    Returns:
        Videos in [0, 1] on the model's device, [B, 3, T, S, S].
    Raises:
        ValueError: latents of another shape than the model's; a value that is infinite or no number, in fp32 and after
            the normalisation is undone; or values so large that the model gives a pixel that is none.
    """
    device = model.last_layer.weight.device
    structure, dynamics = structure.to(device).float(), dynamics.to(device).float()
    require_finite(structure, dynamics)
    if normalization is not None:
        structure, dynamics = normalization.invert(structure, dynamics)
        require_finite(structure, dynamics, " after the normalisation is undone")
    video = model.decode(Latents(structure, dynamics))
    if not torch.isfinite(video).all():
        largest = max(float(values.abs().max()) for values in (structure, dynamics))
        raise ValueError(
            f"the decoder gives pixels that are infinite or no number: the latents reach {largest:.3g}; give latents "
            "of the size that the encoder makes"
        )
    return to_unit(video)


def write_videos(
    model: VidTwin, latents: Iterable[NamedLatents], output: Path, progress: Callable[[int], None] | None = None
) -> int:
    """Write one .mp4 for each of some latents, and return their number.

    Args:
        model: in evaluation mode.
        latents: no two of one name.
        output: a folder, which is made.
        progress: called with the number of videos written.
    Raises:
        ValueError: values of some latents have no pixels.
    """
    written = 0
    for item in latents:
        try:
            video = decode_batch(model, item.structure[None], item.dynamics[None], normalization=item.normalization)[0]
        except ValueError as error:
            raise ValueError(f"{item.place}: {error}") from error
        with VideoWriter(output / f"{item.name}.mp4", item.fps) as writer:
            for frame in to_frames(video):
                writer.write(frame)
        written += 1
        if progress is not None:
            progress(written)
    return written

"""Packs encoded windows: tensors rounded to the stored type, their exact sums, and a `.json` that names their origin.

A sample is three members of a plain tar, which webdataset reads: `<key>.json`, `<key>.safetensors` and `<key>.txt`
(the caption). `latent_tensors.py` in dataset/ names the tensors and the key. The `.json` has these fields:

    clip_key, clip_sha256   key of the clip's sample, and SHA-256 of its mp4
    clip                    the clip's own `.json`, unchanged: source, times, measures
    window                  number of the sample among those of the clip, from 0
    first_frame, frames, frame_stride   the window's frames: first stored frame of the clip, how many, every n-th
    mirrored                whether left and right were exchanged before encoding
    clip_start, clip_end    the window's seconds in the clip; the end is the time of the last frame plus one frame
    start, end              the same in the source of the clip
    label, split, dtype, encoder, weights
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.fields import canonical_json
from data_pipeline.dataset.index import LatentRow
from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.latent_records import LatentSettings, UnitLatents
from data_pipeline.dataset.latent_sums import UnitSums
from data_pipeline.dataset.latent_tensors import latent_key
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.shard_writer import ShardWriter

_TYPES = {
    LatentDtype.fp32: torch.float32,
    LatentDtype.fp16: torch.float16,
    LatentDtype.bf16: torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True)
class SourceClip:
    """One clip of the dataset of clips, as the latents of its windows remember it."""

    row: int  # number in the plan of the latents
    key: str
    sha256: str  # of the mp4
    crc32: int  # of the whole sample, as the index of the clips has it
    caption: bytes
    description: Mapping[str, Any]  # the clip's own `.json`
    start: float  # seconds in the source of the clip
    label: str
    split: str
    phash: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which frames of a clip were encoded."""

    number: int  # among the samples of the clip, from 0
    first_frame: int
    mirrored: bool


class UnfitLatents(ValueError):
    """Tensors that cannot be stored: a value that is no number, or that the stored type cannot hold.

    Attributes:
        reason: a stable slug, `not_finite` or `too_large`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class RoundedLatents:
    """The tensors of one window as they are stored, and what rounding lost."""

    data: bytes  # the safetensors file
    values: dict[str, np.ndarray]  # tensor -> what is stored, as float32
    lost: dict[str, np.ndarray]  # tensor -> the model's values minus those that are stored, float32 and exact


def rounded_latents(tensors: Mapping[str, Tensor], dtype: LatentDtype) -> RoundedLatents:
    """Round the tensors of one window, to nearest, ties to even.

    Args:
        tensors: name in TENSORS -> float32 tensor on the CPU, without a batch axis.
    Raises:
        UnfitLatents: a value is infinite or no number, before or after rounding.
    """
    stored = {name: tensor.to(_TYPES[dtype]).contiguous() for name, tensor in sorted(tensors.items())}
    values, lost = {}, {}
    for name, tensor in stored.items():
        if not torch.isfinite(tensors[name]).all():
            raise UnfitLatents("not_finite", f"the model gave {name} a value that is infinite or no number")
        if not torch.isfinite(tensor).all():
            most = tensors[name].abs().max().item()
            raise UnfitLatents("too_large", f"{name} has a value of size {most:.4g}, more than {dtype.value} can hold")
        values[name] = tensor.float().numpy()
        lost[name] = tensors[name].numpy() - values[name]  # a float32 minus its rounding is a float32 itself
    return RoundedLatents(safetensors.torch.save(stored), values, lost)


class LatentPacker:
    """Puts the latents of a unit into shards of bounded size and uploads each full shard.

    Args:
        dataset: of the latents.
        unit: number of the unit.
        scratch: an empty local folder.

    Attributes:
        writer: of the shards; after `close` it has the entries of all of them.
        samples: index rows of all samples added so far.
        sums: statistics and rounding errors of these samples.
    """

    def __init__(self, dataset: Dataset, unit: int, scratch: Path) -> None:
        self.settings = LatentSettings.of(dataset.plan.settings)
        self.encoder = dataset.plan.encoder
        self.writer = ShardWriter(unit, self.settings.shard_bytes, dataset.store, scratch, LATENTS.payload)
        self.samples: list[LatentRow] = []
        self.sums = UnitSums()

    def add(self, clip: SourceClip, window: Window, latents: RoundedLatents) -> None:
        """Append the latents of one window of a clip."""
        key = latent_key(clip.key, window.first_frame, window.mirrored)
        windows = self.settings.windows
        begin, end = self._seconds(window)
        start, stop = self.times(clip, window)
        description = {
            "clip_key": clip.key,
            "clip_sha256": clip.sha256,
            "clip": clip.description,
            "window": window.number,
            "first_frame": window.first_frame,
            "frames": windows["frames"],
            "frame_stride": windows["frame_stride"],
            "mirrored": window.mirrored,
            "clip_start": round(begin, 6),
            "clip_end": round(end, 6),
            "start": start,
            "end": stop,
            "label": clip.label,
            "split": clip.split,
            "dtype": self.settings.dtype.value,
            "encoder": self.encoder,
            "weights": self.settings.weights,
        }
        place = self.writer.add(
            key, clip.split, description=canonical_json(description), payload=latents.data, caption=clip.caption
        )
        self.samples.append(
            LatentRow(
                key=key,
                **asdict(place),
                frames=windows["frames"],
                height=windows["image_size"],
                width=windows["image_size"],
                split=clip.split,
                source=clip.key,
                label=clip.label,
                row=clip.row,
                clip=window.number,
                start=start,
                end=stop,
                phash=clip.phash,
                first_frame=window.first_frame,
                mirrored=window.mirrored,
                clip_crc32=clip.crc32,
            )
        )
        self.sums.add_values(latents.values, clip.split)
        self.sums.add_rounding(latents.lost)

    def times(self, clip: SourceClip, window: Window) -> tuple[float, float]:
        """Seconds of a window's start and end in the source of its clip, rounded to a millionth."""
        begin, end = self._seconds(window)
        return round(clip.start + begin, 6), round(clip.start + end, 6)

    def _seconds(self, window: Window) -> tuple[float, float]:
        """Seconds of a window's start and end in its clip."""
        windows, fps = self.settings.windows, float(self.settings.fps)
        begin = window.first_frame / fps
        return begin, begin + ((windows["frames"] - 1) * windows["frame_stride"] + 1) / fps

    def close(self, device: str) -> UnitLatents:
        """Upload the last shard. Returns: what the commit record says of the latents.

        Args:
            device: kind of device that encoded the unit.
        """
        self.writer.close()
        return UnitLatents(device=device, sums=self.sums.sums, rounding=self.sums.rounding)

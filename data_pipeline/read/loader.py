"""Batches of clips for training: worker processes read them in the order that the formula of order.py gives.

Layouts: b examples of a rank, T frames, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from data_pipeline.dataset.kind import CLIPS, Kind
from data_pipeline.read.batches import Examples, Position, Substitute
from data_pipeline.read.config import DataConfig
from data_pipeline.read.order import PURPOSE_FRAMES, choose, draw
from data_pipeline.read.sample_loader import SampleLoader
from data_pipeline.read.sample_reader import SampleReader, random_view
from data_pipeline.read.sample_table import Sample
from data_pipeline.read.selection import Selection, check_size, select_clips
from data_pipeline.read.sweep import Clips, ClipSweep, iterate_clips
from data_pipeline.read.two_tries import BadSample, TooManyBadSamples

__all__ = [
    "BadSample",
    "Batch",
    "ClipLoader",
    "ClipSweep",
    "Clips",
    "DataConfig",
    "Position",
    "Substitute",
    "TooManyBadSamples",
    "iterate_clips",
]


@dataclass(kw_only=True)
class Batch(Examples):
    """One rank's examples of one global step, in the order of the global batch."""

    video: Tensor  # uint8 [b, 3, T, S, S], RGB, contiguous; T is the same on all ranks

    def pin_memory(self) -> Batch:
        """Copy the frames to page-locked memory, so that their copy to a GPU can overlap with computing."""
        self.video = self.video.pin_memory()
        return self


class ClipLoader(SampleLoader[Tensor, Batch]):
    """The training clips of one rank: `SampleLoader` says what is asked for and what is refused."""

    KIND: ClassVar[Kind] = CLIPS
    SELECTED_BY: ClassVar[str] = "data.split, data.frames, data.frame_stride and data.image_size"
    CHECKSUMS: ClassVar[bool] = False
    config: DataConfig

    def __init__(self, config: DataConfig, rank: int = 0, world_size: int = 1, *, pin_memory: bool = False) -> None:
        super().__init__(config, rank, world_size, pin_memory=pin_memory)
        self.reader = SampleReader(self.files)

    def _select(self) -> Selection:
        check_size(self.files.dataset, self.config)
        return select_clips(self.table, self.config)

    def _tensor_bytes(self, examples: int) -> list[int]:
        return [examples * 3 * self.config.frames * self.config.image_size**2]

    def frames_at(self, begin: int) -> int:
        """T of the global batch that begins at sample `begin` of the endless sequence; follows from data.seed."""
        config = self.config
        if not config.frame_counts:
            return config.frames
        word = draw(config.seed, PURPOSE_FRAMES, (begin, 0, 0), 1)[0]
        return choose(int(word), config.frame_counts, config.frame_shares)

    def _begin(self, begin: int, examples: int) -> Tensor:
        size = self.config.image_size
        return torch.empty(examples, 3, self.frames_at(begin), size, size, dtype=torch.uint8)

    def _read(self, work: Tensor, place: int, sample: Sample, epoch: int, attempt: int) -> str:
        out = work[place].numpy()
        return self.reader.read(sample, random_view(self.config, sample, epoch, attempt, frames=out.shape[1]), out)

    def _finish(self, work: Tensor, examples: Examples) -> Batch:
        return Batch(video=work, **vars(examples))

"""The real windows that generated clips are compared with: those that were encoded, read as pixels from the shards.

The dataset of latents decides which windows there are, how fast they run and how they are cropped. So the real pixels
are exactly what the generator learned to make. T frames of S x S pixels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from data_pipeline.dataset.kind import CLIPS, LATENTS, Kind
from data_pipeline.outside.naming import naming
from data_pipeline.read.config import DataConfig, LatentDataConfig, ReadingConfig
from data_pipeline.read.sample_reader import SampleReader, centre_view
from data_pipeline.read.sample_table import SampleTable
from data_pipeline.read.shard_files import ShardFiles
from data_pipeline.read.two_tries import UnreadableSample

TRAINING_SPLIT = "train"
_COLUMNS = ("key", "source", "label", "first_frame", "mirrored", "clip_crc32")


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a clip that was encoded.

    Attributes:
        key: of its latents.
        clip: key of the clip in the shards.
        label: the clip's class.
        first_frame: stored frame at which it begins.
        mirrored: whether left and right are exchanged.
        crc32: of the clip's sample in the shards when it was encoded.
    """

    key: str
    clip: str
    label: str
    first_frame: int
    mirrored: bool
    crc32: int


class RealClips:
    """The windows of a dataset of latents, and their pixels in the dataset of clips.

    Args:
        shards: the dataset of clips, folder or s3://bucket/prefix.
        latents: the dataset of latents that was encoded from it.
    Raises:
        ValueError: one of the two is not there, or holds something else.
        StoreError: the storage fails.
    """

    def __init__(self, shards: str, latents: str) -> None:
        self.shards = shards
        encoded = _opened("--latents", LatentDataConfig(shards=latents), LATENTS)
        assert encoded.dataset.latents is not None
        self.description = encoded.dataset.latents
        self._windows = SampleTable(encoded.index_path(), len(encoded.dataset.shards))
        chosen = self.description.windows
        self.config = DataConfig(
            shards=shards,
            frames=int(chosen["frames"]),
            image_size=int(chosen["image_size"]),
            frame_stride=int(chosen["frame_stride"]),
            resize=int(chosen["resize"]),
            workers=0,
        )
        self._files = _opened("--shards", self.config, CLIPS)
        self._table = SampleTable(self._files.index_path(), len(self._files.dataset.shards))
        self._reader = SampleReader(self._files)
        self._rows: dict[str, int] = {}
        self.fps: Fraction = Fraction(self._files.dataset.fps) / self.config.frame_stride
        self.failed: dict[str, str] = {}
        """Key of each window that could not be read -> why."""

    def splits(self) -> set[str]:
        """Those of which there are latents."""
        return {str(name) for _, (split,) in self._windows.columns("split") for name in np.unique(split)}

    def windows(self, split: str, *, mirrored: bool = False, keys: Collection[str] | None = None) -> list[Window]:
        """The windows of a split, in the order of the index.

        Args:
            mirrored: also those with left and right exchanged.
            keys: only these.
        """
        found: list[Window] = []
        for _, inside, columns in self._windows.of_split(split, *_COLUMNS):
            for key, clip, label, first, twin, crc32 in zip(*(column[inside] for column in columns), strict=True):
                if (mirrored or not twin) and (keys is None or key in keys):
                    window = Window(
                        key=str(key),
                        clip=str(clip),
                        label=str(label),
                        first_frame=int(first),
                        mirrored=bool(twin),
                        crc32=int(crc32),
                    )
                    found.append(window)
        return found

    def training_labels(self) -> Counter[str]:
        """How many training latents each class has, mirrored ones included."""
        found: Counter[str] = Counter()
        for _, inside, (labels,) in self._windows.of_split(TRAINING_SPLIT, "label"):
            found.update(labels[inside].tolist())
        return found

    def identity(self, window: Window) -> str:
        """What decides the pixels of a window, as a text."""
        config = self.config
        shape = [config.frames, config.image_size, config.frame_stride, config.resize]
        return json.dumps([window.clip, window.crc32, window.first_frame, window.mirrored, shape])

    def find(self, windows: Sequence[Window]) -> None:
        """Look up where the clips of the windows lie in the shards.

        Raises:
            ValueError: a clip is not there, or is another one than was encoded; the message names it.
        """
        if missing := self.missing(windows):
            raise ValueError(
                f"--shards {self.shards} does not hold the clip {missing[0]} that --latents was encoded from "
                f"({len(missing)} such clips); name the shards that it was encoded from, or run "
                "launch/encode_latents.py again"
            )

    def missing(self, windows: Sequence[Window]) -> list[str]:
        """Look up as `find` does, and return the keys of the clips that are not there or are others, sorted."""
        wanted = {window.clip: window.crc32 for window in windows if window.clip not in self._rows}
        for start, (keys, crcs) in self._table.columns("key", "crc32") if wanted else ():
            for place, key in enumerate(keys):
                if wanted.get(key) == crcs[place]:
                    self._rows[str(key)] = start + place
        return sorted(wanted.keys() - self._rows.keys())

    def read(self, windows: Sequence[Window]) -> tuple[list[int], Tensor]:
        """Pixels of windows that `find` has looked up.

        Returns:
            Which of the windows could be read, and their pixels, uint8 [b, 3, T, S, S]. `failed` names the others.
        Raises:
            StoreError: the storage fails.
        """
        config = self.config
        video = torch.empty(len(windows), 3, config.frames, config.image_size, config.image_size, dtype=torch.uint8)
        kept: list[int] = []
        for place, window in enumerate(windows):
            sample = self._table[self._rows[window.clip]]
            try:
                self._reader.read(sample, centre_view(config, sample, window.first_frame), video[len(kept)].numpy())
            except UnreadableSample as error:
                self.failed[window.key] = error.bad.error
                continue
            if window.mirrored:
                video[len(kept)] = video[len(kept)].flip(-1)
            kept.append(place)
        return kept, video[: len(kept)]


def _opened(option: str, config: ReadingConfig, kind: Kind) -> ShardFiles:
    with naming(f"{option} "):
        return ShardFiles(config, kind, named=f"{option} ")

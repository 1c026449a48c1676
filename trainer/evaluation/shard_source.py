"""Windows of a dataset of shards, for a measurement."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np

from data_pipeline.read.config import DataConfig
from data_pipeline.read.isolated_decoder import IsolatedViewDecoder
from data_pipeline.read.sweep import iterate_clips
from data_pipeline.read.two_tries import BadSample, TooManyBadSamples
from data_pipeline.store.counted import counted
from trainer.evaluation.draws import Draw
from trainer.evaluation.sources import Part, Totals, Window

PART_WINDOWS = 16
"""Windows that are measured by one process, one after another."""
_READ_TOGETHER = 4


class ShardSource:
    """Windows of one split of a shard dataset, as stored: 8 frames a second, side by side, centre crop."""

    def __init__(
        self,
        shards: str,
        split: str,
        frames: int,
        size: int,
        resize: int = 0,
        max_windows: int | None = None,
        draw: Draw | None = None,
    ) -> None:
        """
        Args:
            shards: a dataset of launch/build_shards.py, a folder or s3://bucket/prefix.
            split: train, val or test.
            frames, size: T and S of a window.
            resize: scale the stored short side to so many pixels before cropping; 0 crops stored pixels, as training.
            max_windows: at most so many windows in all, spread evenly over the split.
            draw: take one window at a random place of each of the first clips that are long enough, in the place of all
                windows.
        Raises:
            ValueError: `shards` is no dataset, or no clip of that split is long and large enough.
        """
        self._shards, self._split = shards, split
        if 0 < resize < size:
            raise ValueError(f"--resize {resize} is smaller than the model's {size} pixels; use {size} or more, or 0")
        config = DataConfig(
            shards=shards,
            split=split,
            frames=frames,
            image_size=size,
            resize=resize,
            workers=0,
            seed=draw.seed if draw is not None else 0,
        )
        self.settings: Mapping[str, Any] = {
            "split": split,
            "frames": frames,
            "size": size,
            "resize": resize,
            "max_windows": max_windows,
        } | ({} if draw is None else {"draw": asdict(draw)})
        try:
            self._sweep = iterate_clips(
                config,
                split,
                windows="all" if draw is None else "drawn",
                batch_size=_READ_TOGETHER,
                limit=max_windows if draw is None else draw.items,
                decoder=self._decoder_of,
            )
        except ValueError as error:
            raise ValueError(f"--shards {shards} --split {split}: {error}") from error
        self._fps = float(self._sweep.files.dataset.fps)
        lengths = np.concatenate([column for _, (column,) in self._sweep.table.columns("frames")])
        self._left_out = int((lengths[self._sweep.selection.rows] % frames).sum()) if draw is None else 0
        self._drawn = "" if draw is None else f", one drawn of each clip with seed {draw.seed}"
        self._bad: dict[int, BadSample] = {}
        self.totals = Totals()

    def _decoder_of(self, fps: Fraction) -> IsolatedViewDecoder:
        self._decoder = IsolatedViewDecoder(fps)
        return self._decoder

    def __len__(self) -> int:
        """Number of windows."""
        return self._sweep.total

    def describe(self) -> str:
        """The source in one line."""
        windows = counted(self._sweep.total, "window")
        return f"{self._shards}, split {self._split}: {windows} at {self._fps:g} frames a second{self._drawn}"

    def windows(self) -> Iterator[Window]:
        """Windows in the order of the index. `totals` names the unreadable clips."""
        self.totals = self.whole()
        seen: set[str] = set()
        with closing(self):
            for part in self.parts():
                for window in self.read(part, self.totals):
                    seen.add(window.source)
                    self.totals.sources = len(seen)
                    yield window

    def parts(self) -> list[Part]:
        """Runs of `PART_WINDOWS` windows, in the order of the index."""
        found = []
        for first in range(0, self._sweep.total, PART_WINDOWS):
            numbers = range(first, min(first + PART_WINDOWS, self._sweep.total))
            told = [self._sweep.files.dataset.digest, self.settings, self._sweep.positions(numbers)]
            found.append(Part(f"{numbers.start}-{numbers.stop}", json.dumps(told), len(numbers)))
        return found

    def whole(self) -> Totals:
        """Which samples of the dataset are windows at all, and how many frames lie behind the last windows."""
        return Totals(left_out_frames=self._left_out, remarks=[self._sweep.selection.describe()])

    def close(self) -> None:
        """End the process that decodes for this thread."""
        self._decoder.close()

    def interrupt(self) -> None:
        """See `WindowSource`."""
        self._decoder.kill()

    def read(self, part: Part, totals: Totals) -> Iterator[Window]:
        """Windows of one part, which another process decodes.

        `totals` names each clip that cannot be read, also because its decoder crashed.

        Raises:
            ValueError: more clips than `max_bad_samples` could not be read.
        """
        first, stop = (int(number) for number in part.name.split("-"))
        for number in range(first, stop, _READ_TOGETHER):
            clips = self._sweep.read_clips(number)
            totals.failed += [(bad.key, bad.error) for bad in clips.bad if (bad.key, bad.error) not in totals.failed]
            self._bad |= {bad.row: bad for bad in clips.bad}
            if len(self._bad) > self._sweep.config.max_bad_samples:
                raise ValueError(str(TooManyBadSamples.listing(self._sweep.config, list(self._bad.values()))))
            for video, key, start in zip(clips.video, clips.keys, clips.starts, strict=True):
                totals.windows += 1
                yield Window(video.float() / 255, key, start, 1, self._fps)

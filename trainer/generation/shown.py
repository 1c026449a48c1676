"""Samples beside their nearest training clips, as videos: what a person looks at to see whether a clip was repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.evaluation.pictures import VideoWriter
from trainer.evaluation.reconstruction import to_frames
from trainer.generation.measure import Measuring, decode_samples
from trainer.generation.real_clips import TRAINING_SPLIT


@dataclass(frozen=True)
class Clip:
    """A clip as the page shows it: its caption and the bytes of its mp4."""

    caption: str
    mp4: bytes


def shown(measuring: Measuring, report: Mapping[str, Any], count: int, folder: Path) -> list[list[Clip]]:
    """The samples that lie nearest to training clips, and behind each of them these clips, as they are in the shards.

    A training clip that cannot be read, or is no longer in the shards, is left out and named in `clips.failed`,
    because which clips are the nearest is known only after hours of work.

    Args:
        measuring: what was measured.
        report: its results.
        count: samples.
        folder: where the videos are written, H.264 at the rate of the clips.
    Raises:
        OSError: the storage fails, or the videos cannot be written.
    """
    clips, samples = measuring.clips, {item.name: item for item in measuring.chosen.samples.items}
    nearest = report["memorisation"]["nearest"][:count]
    keys = dict.fromkeys(key for item in nearest for key in item["training"])
    windows = {window.key: window for window in clips.windows(TRAINING_SPLIT, mirrored=True, keys=keys)}
    gone = set(clips.missing(list(windows.values())))
    for key in keys:
        if windows[key].clip in gone:
            clips.failed[key] = f"--shards does not hold its clip {windows[key].clip}"

    def written(name: str, caption: str, video: Tensor) -> Clip:
        file = folder / f"{name}.mp4"
        with VideoWriter(file, clips.fps) as writer:
            for frame in to_frames(video):
                writer.write(frame)
        return Clip(caption, file.read_bytes())

    rows: list[list[Clip]] = []
    for item in nearest:
        sample = samples[item["sample"]]
        row = [written(sample.name, f"{sample.name} {sample.label}", decode_samples(measuring.model, [sample])[0])]
        for key, distance in zip(item["training"], item["distances"], strict=True):
            kept, video = clips.read([windows[key]] if windows[key].clip not in gone else [])
            if kept:
                caption = f"{windows[key].label} {key}, distance {distance:.4g}"
                row.append(written(f"training-{key}", caption, video[0].float() / 255))
        rows.append(row)
    return rows

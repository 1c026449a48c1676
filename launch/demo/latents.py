"""What the demo's report shows of the latents: their statistics, and the nearest training windows of held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipeline.dataset.description import read_dataset
from data_pipeline.read.latent_dataset import LatentDataset, LatentItem
from data_pipeline.store.open import open_store
from model.vidtwin import VidTwin
from trainer.evaluation.pictures import animated_png, side_by_side
from trainer.evaluation.reconstruction import to_frames
from trainer.latents.decode import decode_batch
from trainer.latents.neighbours import nearest

NEIGHBOURS = 3
"""Training windows shown beside each held-out window."""


@dataclass
class Part:
    """One of the three parts of the latents: what the statistics of the dataset say of its channels."""

    name: str
    shape: tuple[int, ...]
    mean: tuple[float, float]  # smallest and largest of the channels' means
    deviation: tuple[float, float]  # smallest and largest of the channels' deviations
    rounding: float  # largest error of what is stored


@dataclass
class Neighbours:
    """A held-out window and the training windows whose latents are nearest, decoded, as one moving picture."""

    title: str
    found: list[str]
    distances: list[float]
    png: bytes


@dataclass
class Latents:
    """All that is shown."""

    windows: int
    bytes: int
    dtype: str
    parts: list[Part]
    neighbours: list[Neighbours]


def describe(folder: Path, model: VidTwin, count: int) -> Latents:
    """Read the dataset of latents back.

    Args:
        folder: the dataset.
        model: which encoded it.
        count: held-out windows to show, spread evenly over the split.
    """
    dataset = read_dataset(open_store(str(folder)))
    stored = dataset.latents
    assert stored is not None, "launch/encode_latents.py wrote it"
    parts = [
        Part(
            name,
            stored.shapes[name],
            (min(found.mean), max(found.mean)),
            (min(found.deviation), max(found.deviation)),
            stored.rounding[name].largest,
        )
        for name, found in stored.statistics.items()
    ]
    fps = float(dataset.fps / int(stored.windows["frame_stride"]))
    size = sum(shard.bytes for shard in dataset.shards)
    return Latents(dataset.samples, size, stored.dtype.value, parts, _neighbours(folder, model, count, fps))


def _neighbours(folder: Path, model: VidTwin, count: int, fps: float) -> list[Neighbours]:
    held_out, trained = (LatentDataset(str(folder), split, normalize=True) for split in ("val", "train"))
    distances, numbers = nearest(held_out, trained, NEIGHBOURS)
    plain_held_out, plain_trained = (LatentDataset(str(folder), split) for split in ("val", "train"))
    shown = []
    for number in (torch.arange(min(count, len(held_out))) * len(held_out) // max(count, 1)).unique().tolist():
        items = [plain_held_out[number], *(plain_trained[int(other)] for other in numbers[number])]
        videos = decode_batch(
            model, *(torch.stack([item[name] for item in items]) for name in ("structure", "dynamics"))
        )
        frames = [to_frames(video) for video in videos]
        shown.append(
            Neighbours(
                title=_title(items[0]),
                found=[_title(item) for item in items[1:]],
                distances=distances[number].tolist(),
                png=animated_png(side_by_side(frames), fps),
            )
        )
    return shown


def _title(item: LatentItem) -> str:
    """The row, the clip and the first frame of a sample: its key without the digest that makes it unique."""
    row, _, clip, frame = str(item["key"]).rsplit("-", 3)
    return f"{row}, clip {int(clip)}, from frame {int(frame.strip('fm'))}"

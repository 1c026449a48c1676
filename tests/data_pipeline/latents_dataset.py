"""A valid dataset of latents from random tensors, without a model, without videos and without Ray.

The plan, the packer, the units and the description are the real ones; only the tensors are made up. So readers of
latents are tested against what an encoding leaves on the store.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.latent_records import LatentSettings
from data_pipeline.dataset.latent_tensors import MEANS, TENSORS
from data_pipeline.dataset.plan import PLAN_KEY, Dataset, Plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.units import commit_unit
from data_pipeline.latents.packing import LatentPacker, SourceClip, Window, rounded_latents
from data_pipeline.latents.segments import PlannedClip, next_segment, write_segment
from data_pipeline.store.base import Store
from data_pipeline.store.local import LocalStore

SHAPES = {"structure": (3, 4, 2, 2), "dynamics_w": (2, 8, 2), "dynamics_h": (2, 8, 2)}
"""Shapes of a small VidTwin: d_S = 3, n_q = 4, h_S = w_S = 2, d_D = 2, f = 8, w_D = h_D = 2."""
FRAMES = 8


@dataclass(frozen=True)
class MadeUpClip:
    """One clip, and how many windows of it there are."""

    key: str
    windows: int = 1
    caption: str = "a caption"
    label: str = ""
    split: str = "train"
    captions: tuple[str, ...] = ()  # of a further column of the manifest


@dataclass
class MadeUpLatents:
    """What was written.

    Attributes:
        store: with the dataset.
        description: its dataset.json.
        tensors: sample key -> the tensors as float32, before they were rounded to the stored type.
    """

    store: Store
    description: DatasetFile
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def make_clips(count: int, *, windows: Sequence[int] = (1, 3, 2), split: str = "train") -> list[MadeUpClip]:
    """`count` clips with different numbers of windows, captions and labels."""
    return [
        MadeUpClip(
            f"{split}-{number:05d}-0000", windows[number % len(windows)], f"caption {number} é", "ab"[number % 2], split
        )
        for number in range(count)
    ]


def settings_of(
    dtype: LatentDtype = LatentDtype.fp32,
    *,
    logvar: bool = False,
    mirrored: bool = False,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    shard_bytes: int = 256_000_000,
) -> LatentSettings:
    """Settings of a dataset of windows of 8 frames, side by side."""
    stored = {name: shapes[name.removesuffix("_logvar")] for name in (TENSORS if logvar else MEANS)}
    return LatentSettings(
        fps=8,
        weights="0" * 64,
        model={"frames": FRAMES, "image_size": 32},
        dtype=dtype,
        shapes=stored,
        windows={
            "choose": "all",
            "every": 0,
            "count": 0,
            "seed": 0,
            "mirrored": mirrored,
            "frames": FRAMES,
            "frame_stride": 1,
            "image_size": 32,
            "resize": 0,
        },
        encode={"batch": 4, "threads": 1, "precision": "fp32"},
        shard_bytes=shard_bytes,
    )


def write_latents(
    folder: Path,
    shards: Sequence[Sequence[MadeUpClip]],
    settings: LatentSettings | None = None,
    *,
    seed: int = 0,
    scale: float = 1.0,
) -> MadeUpLatents:
    """Write a complete dataset of latents.

    Args:
        folder: where to.
        shards: the clips of each source shard; each gives one unit.
        settings: None takes `settings_of()`.
        seed: of the made-up tensors, which are normal numbers times `scale`.
    """
    settings = settings or settings_of()
    store = LocalStore(folder)
    dataset = Dataset(store, Plan(encoder="made-up-1", settings=settings.to_settings(), segments=()))
    for number, clips in enumerate(shards):
        planned = pa.Table.from_pylist([asdict(_planned(clip)) for clip in clips])
        name = f"shards/{number:06d}-000.tar"
        segment, rows_of = next_segment(dataset.plan.segments, name, f"{number:064x}", planned)
        write_segment(store, segment, rows_of)
        dataset = Dataset(store, dataset.plan.grown(segment))
    store.write(PLAN_KEY, dataset.plan.to_json())
    written, rows = MadeUpLatents(store, None), PlanRows(dataset)  # type: ignore[arg-type]
    noise = torch.Generator().manual_seed(seed)
    for unit, clips in enumerate(shards):
        with tempfile.TemporaryDirectory() as scratch:
            packer, fates = LatentPacker(dataset, unit, Path(scratch)), []
            for clip, row in zip(clips, rows.unit(unit), strict=True):
                twins = (False, True) if settings.windows["mirrored"] else (False,)
                kept = [(w, twin) for w in range(clip.windows) for twin in twins]
                for number, (window, twin) in enumerate(kept):
                    tensors = {
                        name: scale * torch.randn(shape, generator=noise) for name, shape in settings.shapes.items()
                    }
                    place = Window(number=number, first_frame=window * FRAMES, mirrored=twin)
                    packer.add(_source(clip, row.row), place, rounded_latents(tensors, settings.dtype))
                    written.tensors[packer.samples[-1].key] = tensors
                fates.append(
                    RowFate.committed(row, len(kept)) if kept else RowFate.rejected(row, "too_short", {"frames": 1})
                )
            latents = packer.close("cpu made up")
            commit_unit(
                dataset, unit, shards=packer.writer.shards, samples=packer.samples, fates=fates, latents=latents
            )
    written.description = finalize(dataset)
    return written


def _planned(clip: MadeUpClip) -> PlannedClip:
    return PlannedClip(
        key=clip.key,
        offset=0,
        size=1024,
        crc32=len(clip.key),
        frames=FRAMES * clip.windows,
        height=32,
        width=32,
        start=0.0,
        end=float(clip.windows),
        label=clip.label,
        split=clip.split,
        phash=1,
    )


def _source(clip: MadeUpClip, row: int) -> SourceClip:
    extra = {"extra": {"captions": list(clip.captions)}} if clip.captions else {}
    return SourceClip(
        row=row,
        key=clip.key,
        sha256=hashlib.sha256(clip.key.encode()).hexdigest(),
        crc32=len(clip.key),
        caption=clip.caption.encode(),
        description=json.loads(json.dumps({"id": clip.key, "label": clip.label, "split": clip.split} | extra)),
        start=0.0,
        label=clip.label,
        split=clip.split,
        phash=1,
    )

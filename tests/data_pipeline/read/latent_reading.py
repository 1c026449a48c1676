"""What tests of reading latents share: a dataset, a configuration, the truth by webdataset and safetensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
import webdataset
from torch import Tensor

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.read.config import LatentDataConfig
from data_pipeline.read.latent_loader import LatentBatch, LatentLoader
from data_pipeline.read.loader import Position
from tests.data_pipeline.latents_dataset import make_clips, settings_of, write_latents

GLOBAL_BATCH = 12
TRAIN = 62  # samples of the split, mirrored twins included


def write(folder: Path, dtype: LatentDtype = LatentDtype.fp16, *, logvar: bool = True, seed: int = 0) -> Path:
    """31 windows of training clips in four units and 4 of validation clips in one, each with its mirrored twin."""
    clips = make_clips(16)  # 1, 3, 2, 1, ... windows
    shards = [clips[:4], clips[4:5], clips[5:10], make_clips(2, split="val"), clips[10:]]
    write_latents(folder, shards, settings_of(dtype, logvar=logvar, mirrored=True), seed=seed)
    return folder


def latent_config(root: Path | str, **changes: object) -> LatentDataConfig:
    settings: dict[str, object] = {
        "shards": str(root),
        "global_batch": GLOBAL_BATCH,
        "lanes": 4,
        "shuffle_window": 3,
        "seed": 11,
        "workers": 0,
    }
    return LatentDataConfig(**{**settings, **changes})  # type: ignore[arg-type]


@dataclass
class Stored:
    """One sample as other libraries read it."""

    tensors: dict[str, Tensor]  # float32
    caption: str
    label: str

    @property
    def structure(self) -> Tensor:
        return self.tensors["structure"]

    @property
    def dynamics(self) -> Tensor:
        return torch.cat([self.tensors["dynamics_w"], self.tensors["dynamics_h"]], dim=-1)


def stored_samples(root: Path) -> dict[str, Stored]:
    """Every sample by its key, read by webdataset and safetensors."""
    urls = [str(file) for file in sorted((root / "shards").glob("*.tar"))]
    return {
        sample["__key__"]: Stored(
            {name: tensor.float() for name, tensor in safetensors.torch.load(sample["safetensors"]).items()},
            sample["txt"].decode(),
            json.loads(sample["json"])["label"],
        )
        for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    }


def index_columns(root: Path, *names: str) -> list[list[object]]:
    """Columns of index.arrow, read by Arrow."""
    table = pa.ipc.open_file(pa.memory_map(str(root / "index.arrow"))).read_all()
    return [table.column(name).to_pylist() for name in names]


Example = tuple[str, str, str, int, bytes, bytes]


def fingerprint(batch: LatentBatch) -> list[Example]:
    """Everything about each example of a batch."""
    tensors = [[tensor.numpy().tobytes() for tensor in values] for values in (batch.structure, batch.dynamics)]
    return list(zip(batch.keys, batch.captions, batch.labels, batch.indices.tolist(), *tensors, strict=True))


def global_batches(
    settings: LatentDataConfig, ranks: int, count: int, start: Position | None = None
) -> list[list[Example]]:
    """The first `count` global batches, put together from every rank's share."""
    shares = []
    for rank in range(ranks):
        loader = LatentLoader(settings, rank, ranks)
        shares.append([fingerprint(batch) for batch in islice(loader.from_position(start), count)])
        loader.close()
    return [[example for share in step for example in share] for step in zip(*shares, strict=True)]


def damage(root: Path, rows: list[int]) -> list[str]:
    """Change one bit of the stored tensors of some samples; returns their keys."""
    keys, shards, offsets, sizes = index_columns(root, "key", "shard", "video_offset", "video_size")
    names = [shard["name"] for shard in json.loads((root / "dataset.json").read_text())["shards"]]
    for row in rows:
        path = root / names[shards[row]]  # type: ignore[call-overload]
        data = np.fromfile(path, np.uint8)
        data[int(offsets[row]) + int(sizes[row]) - 1] ^= 1  # type: ignore[call-overload]
        data.tofile(path)
    return [str(keys[row]) for row in rows]

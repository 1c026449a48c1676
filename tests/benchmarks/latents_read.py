"""(h) Reading latents against its limits: a bare loop of `safetensors` loads, and the same with draws.

One process, one thread, in turns: batches from the loader (index, shard, CRC, caption, float32, collate), then for the
same samples a `pread` of the stored tensors and `safetensors.torch.load`, and nothing done with them. With draws, the
limit also draws each sample from its posterior with a generator of NumPy that is keyed by the sample. Times are CPU
seconds of the thread (the shards are in the page cache, so nothing waits), and a ratio is the median over turns.
"""

import os
import tempfile
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.latent_tensors import MEANS
from data_pipeline.read.config import LatentDataConfig
from data_pipeline.read.latent_loader import LatentLoader
from data_pipeline.read.sample_table import Sample
from tests.data_pipeline.latents_dataset import make_clips, settings_of, write_latents

BASE = {"structure": (4, 16, 7, 7), "dynamics_w": (8, 16, 7), "dynamics_h": (8, 16, 7)}
"""Shapes of the paper's model."""
BATCH, BATCHES, LANES, TURNS = 128, 8, 32, 15


def run() -> dict[str, Any]:
    """The figures of one run; `sampled` holds those of `sample=true`."""
    torch.set_num_threads(1)
    means, draws = _measure(sample=False), _measure(sample=True)
    return {
        "name": "latents",
        "unit": "samples/s per core",
        "value": 1 / means["loader"],
        "limit": 1 / means["bare"],
        "limit_is": "pread and safetensors.torch.load of the same tensors",
        "ratio": means["ratio"],
        "target": 0.5,
        "further": [
            {
                "name": "latents, drawn",
                "unit": "samples/s per core",
                "value": 1 / draws["loader"],
                "limit": 1 / draws["bare"],
                "limit_is": "the same loads with a keyed draw by numpy.random.Generator(Philox)",
                "ratio": draws["ratio"],
                "target": 0.5,
            }
        ],
        "seconds": {"means": means, "draws": draws},
    }


def _measure(sample: bool) -> dict[str, float]:
    """Median seconds a sample of the loader and of the bare loop, and the median of their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(LatentDtype.fp16, logvar=sample, shapes=BASE, shard_bytes=4_000_000)
        write_latents(Path(folder), [make_clips(BATCH * BATCHES // 4, windows=(4,)) for _ in range(1)], settings)
        config = LatentDataConfig(shards=folder, global_batch=BATCH, lanes=LANES, workers=0, sample=sample)
        loader = LatentLoader(config)
        samples = loader.table.samples(np.arange(len(loader.table)))
        times: dict[str, list[float]] = {"loader": [], "bare": [], "bare_numpy": []}
        batches = loader.from_position()
        for _ in range(TURNS + 1):
            times["loader"].append(_seconds(lambda: deque(islice(batches, BATCHES), maxlen=1)))
            for name, load in (("bare", safetensors.torch.load), ("bare_numpy", safetensors.numpy.load)):
                times[name].append(_seconds(lambda load=load: _bare(loader, samples, load, sample)))  # type: ignore[misc]
        loader.close()
    measured = {name: np.array(values[1:]) / (BATCH * BATCHES) for name, values in times.items()}
    ratio = float(np.median(measured["bare"] / measured["loader"]))
    return {name: float(np.median(values)) for name, values in measured.items()} | {"ratio": ratio}


def _seconds(work: Callable[[], object]) -> float:
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def _bare(loader: LatentLoader, samples: list[Sample], load: Callable[[bytes], Any], sample: bool) -> None:
    """As little as can be done: one open file for each shard, one read and one load for each sample."""
    paths = [loader.files.store.local_path(shard.name) for shard in loader.files.dataset.shards]
    descriptors = [os.open(str(path), os.O_RDONLY) for path in paths]
    for one in samples:
        tensors = load(os.pread(descriptors[one.shard], one.video_size, one.video_offset))
        if sample:
            _keyed_draw(tensors, one.row)
    for descriptor in descriptors:
        os.close(descriptor)


def _keyed_draw(tensors: dict[str, Any], row: int) -> None:
    generator = np.random.Generator(np.random.Philox(key=row))
    for name in MEANS:
        mean, logvar = (torch.as_tensor(tensors[name + end]).float() for end in ("", "_logvar"))
        noise = torch.from_numpy(generator.standard_normal(mean.shape, dtype=np.float32))
        torch.addcmul(mean, torch.exp(0.5 * logvar), noise)

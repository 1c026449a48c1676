"""Encoding clips into latents: what a worker does, and what the model alone would do with as many windows.

A model of width 256 and depth 4 on windows of 8 x 112 x 112 from real clips, fp32, one thread of torch and one decoder.
Counted are windows in a second of one processor, because a busy machine adds to other clocks: reading, decoding, sums
and writing are all in it. Also the resident memory of the worker after each of several rounds over the same units,
which must not grow.

    python -m tests.benchmarks --only latents_encoded
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from data_pipeline.cut.config import ClipConfig
from data_pipeline.dataset.units import unit_key
from data_pipeline.store.local import LocalStore
from model.config import VidTwinConfig
from model.vidtwin import VidTwin
from tests.trainer.latents.corpus import build_clips, config_of
from trainer.config.encoding import EncodingConfig
from trainer.latents.encoder import WindowEncoder
from trainer.latents.encoding import plan_encoding
from trainer.latents.worker import EncodeWorker

ROWS = (
    ("bikes", "bikes.mp4", "train"),
    ("bunny", "bigbuckbunny.mp4", "train"),
    ("phone", "carphone_pristine.mp4", "val"),
)
MODEL = VidTwinConfig(frames=8, image_size=112, width=256, depth=4, heads=8)
CLIPS = ClipConfig(short_side=128, min_seconds=1.0, max_seconds=2.5, min_short_side=128)
ROUNDS = 5


def run() -> dict[str, Any]:
    """The figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        build_clips(root, ROWS, clip=CLIPS)
        torch.manual_seed(0)
        VidTwin(MODEL).eval().save_pretrained(root / "model")
        config = config_of(
            root / "model", root / "shards", root / "latents", "windows.choose=stride", "windows.every=4"
        )
        return _measured(config)


def _measured(config: EncodingConfig) -> dict[str, Any]:
    store = LocalStore(config.output)
    job, units = plan_encoding(config, store)
    worker, process = EncodeWorker(job), psutil.Process()
    worker.run(units[0])  # opens the model
    seconds, windows, memory = [], 0, []
    for _ in range(ROUNDS):
        began, windows = time.process_time(), 0
        for unit in units:
            store.delete(unit_key(unit))
            windows += worker.run(unit).items
        seconds.append(time.process_time() - began)
        memory.append(round(process.memory_info().rss / 1e6))
    alone = _model_alone(config, windows)
    return {
        "name": "encoding",
        "unit": "windows per processor second",
        "value": windows / min(seconds),
        "limit": windows / alone,
        "limit_is": "the model alone on as many windows",
        "ratio": alone / min(seconds),
        "target": 0.9,
        "windows": windows,
        "resident_mb": memory,
    }


def _model_alone(config: EncodingConfig, windows: int) -> float:
    """Seconds of the fastest of some rounds."""
    encoder = WindowEncoder(Path(config.model), torch.device("cpu"), config.encode, logvar=False)
    video = torch.randint(0, 256, (config.encode.batch, 3, MODEL.frames, MODEL.image_size, MODEL.image_size))
    batch = video.to(torch.uint8)

    def rounds() -> Iterator[float]:
        for _ in range(ROUNDS):
            began = time.process_time()
            for first in range(0, windows, len(batch)):
                encoder.encode(batch[: windows - first])
            yield time.process_time() - began

    return min(rounds())

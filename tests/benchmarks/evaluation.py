"""Measuring reconstructions: the whole measurement, and the slower of decoding alone and of model with metrics alone.

One thread of torch. Real videos are decoded and cut to windows; the same windows, held in memory, go through the model
and the metrics; and both together, as launch/evaluate.py does it, with the decoder in a process of its own. In turns,
because other work on the machine must meet all three alike; the ratio is the median over turns. Once with a model that
takes longer than decoding (8 x 112 x 112, width 256, depth 4), and once with one that takes less (8 x 32 x 32, width
64, depth 1).

    python -m tests.benchmarks --only evaluation
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from model.config import DynamicsConfig, StructureConfig, VidTwinConfig
from model.vidtwin import VidTwin
from tests.data_pipeline.dataset.tiny_dataset import real_video
from trainer.evaluation.found_videos import find_videos
from trainer.evaluation.measures import Measures
from trainer.evaluation.metrics import reconstruct
from trainer.evaluation.run import measure
from trainer.evaluation.sources import VideoFiles, Window

VIDEOS = ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")
COPIES = 4
MOST_WINDOWS = 8
"""Of each video, for the model that is slower than decoding; it waits for the first batch, as in any run."""
BATCH, TURNS = 4, 3
SMALL = StructureConfig(queries=4, query_width=16, query_heads=2, query_layers=2, query_hidden=16, conv_width=8)
MODELS = {
    "evaluation, the model is slower": VidTwinConfig(frames=8, image_size=112, width=256, depth=4, heads=8),
    "evaluation, decoding is slower": VidTwinConfig(
        frames=8, image_size=32, patch_size=8, width=64, depth=1, heads=2, structure=SMALL,
        dynamics=DynamicsConfig(channels=4),
    ),
}  # fmt: skip


def run() -> dict[str, Any]:
    """The figures of both models."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(COPIES):
            for name in VIDEOS:
                shutil.copy(real_video(name), Path(folder, f"{number}-{name}"))
        first, second = (_measured(name, config, Path(folder)) for name, config in MODELS.items())
    return first | {"further": [second]}


def _measured(name: str, config: VidTwinConfig, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = VidTwin(config).eval()
    most = MOST_WINDOWS if config.image_size > 32 else None
    source = VideoFiles(find_videos(folder), config.frames, config.image_size, max_windows=most)
    windows = list(source.windows())
    seconds: dict[str, list[float]] = {"decoding": [], "model": [], "whole": []}
    for _ in range(TURNS):
        for what, work in (
            ("decoding", lambda: sum(1 for _ in source.windows())),
            ("model", lambda: _model_alone(model, windows)),
            ("whole", lambda: measure(model, source, batch=BATCH)),
        ):
            began = time.perf_counter()
            work()
            seconds[what].append(time.perf_counter() - began)
    alone = [max(pair) for pair in zip(seconds["decoding"], seconds["model"], strict=True)]
    ratios = [limit / whole for limit, whole in zip(alone, seconds["whole"], strict=True)]
    return {
        "name": name,
        "unit": "windows/s",
        "value": len(windows) / statistics.median(seconds["whole"]),
        "limit": len(windows) / statistics.median(alone),
        "limit_is": "the slower of decoding alone and of model with metrics alone",
        "ratio": statistics.median(ratios),
        "target": 0.9,
        "windows": len(windows),
        "seconds": {what: statistics.median(times) for what, times in seconds.items()},
    }


def _model_alone(model: VidTwin, windows: list[Window]) -> None:
    measures = Measures()
    for first in range(0, len(windows), BATCH):
        real = torch.stack([window.video for window in windows[first : first + BATCH]])
        measures.of(real, reconstruct(model, real))

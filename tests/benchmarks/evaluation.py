"""Measuring reconstructions: the whole measurement against decoding alone and model with metrics alone.

One thread of torch. Real videos are decoded and cut to windows; the same windows, held in memory, go through the model
and the metrics; and both together, as launch/evaluate.py does it, with the decoder in a process of its own. In turns,
because other work on the machine must meet all three alike; ratios are medians over turns. Once with a model that
takes longer than decoding (8 x 112 x 112, width 256, depth 4), and once with one that takes less (8 x 32 x 32, width
64, depth 1).

There are two limits. The first is the slower of the two works alone. It cannot be reached where decoding alone keeps
more cores busy than the model leaves free: decoding takes two, the process of the decoder and the thread that scales.
The second one counts the cores: it is the longest of the two works alone, and of the processor seconds of both together
shared among all cores. Nothing on this machine can be faster than it.

    python -m tests.benchmarks --only evaluation
"""

import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """The figures of both models, each against both limits."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(COPIES):
            for name in VIDEOS:
                shutil.copy(real_video(name), Path(folder, f"{number}-{name}"))
        first, *others = [
            figures for name, config in MODELS.items() for figures in _measured(name, config, Path(folder))
        ]
    return first | {"further": others}


@dataclass(frozen=True)
class Took:
    """What a piece of work took: `wall` seconds, and processor seconds of this process and of its children."""

    wall: float
    processor: float


def _took(work: Callable[[], object]) -> Took:
    """Do the work; a child of this process counts where it has ended when the work has."""
    began, before = time.perf_counter(), _processor_seconds()
    work()
    return Took(time.perf_counter() - began, _processor_seconds() - before)


def _processor_seconds() -> float:
    used = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(some.ru_utime + some.ru_stime for some in used)


def _measured(name: str, config: VidTwinConfig, folder: Path) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = VidTwin(config).eval()
    most = MOST_WINDOWS if config.image_size > 32 else None
    source = VideoFiles(find_videos(folder), config.frames, config.image_size, max_windows=most)
    windows = list(source.windows())
    works: dict[str, Callable[[], object]] = {
        "decoding": lambda: sum(1 for _ in source.windows()),
        "model": lambda: _model_alone(model, windows),
        "whole": lambda: measure(model, source, batch=BATCH),
    }
    turns = [{what: _took(work) for what, work in works.items()} for _ in range(TURNS)]
    limits = {
        "the slower of decoding alone and of model with metrics alone": [_slower(turn) for turn in turns],
        "the same, or all cores busy with both": [max(_slower(turn), _all_cores(turn)) for turn in turns],
    }
    common = {
        "unit": "windows/s",
        "value": len(windows) / statistics.median(turn["whole"].wall for turn in turns),
        "target": 0.9,
        "windows": len(windows),
        "seconds": {what: statistics.median(turn[what].wall for turn in turns) for what in works},
        "processor_seconds": {what: statistics.median(turn[what].processor for turn in turns) for what in works},
    }
    return [
        common
        | {
            "name": name,
            "limit": len(windows) / statistics.median(alone),
            "limit_is": limit,
            "ratio": statistics.median(one / turn["whole"].wall for one, turn in zip(alone, turns, strict=True)),
        }
        for limit, alone in limits.items()
    ]


def _slower(turn: Mapping[str, Took]) -> float:
    return max(turn["decoding"].wall, turn["model"].wall)


def _all_cores(turn: Mapping[str, Took]) -> float:
    return (turn["decoding"].processor + turn["model"].processor) / len(os.sched_getaffinity(0))


def _model_alone(model: VidTwin, windows: list[Window]) -> None:
    measures = Measures()
    for first in range(0, len(windows), BATCH):
        real = torch.stack([window.video for window in windows[first : first + BATCH]])
        measures.of(real, reconstruct(model, real))

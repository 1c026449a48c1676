"""The real training step under DeepSpeed, at the base model's size or tiny, timed part by part."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.gpu.clock import settle
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.estimate.stopwatch import Steps

CONFIGS = Path(__file__).parents[2] / "configs"
# As tiny as the base model can be with all its blocks' kinds.
TINY = (
    *("model.width=48", "model.depth=2", "model.heads=4", "model.image_size=32", "data.image_size=32"),
    *("model.frames=4", "data.frames=4", "model.structure.query_width=16", "model.structure.query_hidden=16"),
    *("model.structure.conv_width=8", "discriminator.width=8"),
)


def base_config(on_gpu: bool, clips: int, *words: str) -> TrainConfig:
    """The paper's training of the base model with `clips` clips on one GPU, LPIPS included."""
    files = [CONFIGS / "train/paper.yaml", CONFIGS / "model/base.yaml"]
    fixed = ["output=unused", "data.shards=unused", "loss.lpips_weights=unused", f"data.global_batch={clips}"]
    return load_config(TrainConfig, files, [*fixed, *(() if on_gpu else TINY), *words])


def timed_method(config: TrainConfig, ranks: Ranks) -> Steps:
    """The method, which learns at rate 0, and has stepped until a step was applied."""
    torch.manual_seed(0)
    method = Steps(config, ranks, config.model.depth, config.data.global_batch, 1)
    method.warm_up()
    return method


def clips_per_second(method: Steps, *, seconds: float = 3.0) -> float:
    """With the adversarial term, the queue of the device full."""
    phase = method.adversarial_step
    steps = max(2, math.ceil(seconds / method.stretch(phase, 1)))
    return len(method.batch.video) / method.stretch(phase, steps)


class Parts:
    """Seconds of the parts of some steps: on the host until a call returned, and on the device while it ran.

    Args:
        device: cuda or cpu; on the CPU both are the same.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.host: dict[str, float] = {}
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def watched(self, targets: dict[str, tuple[object, str]]) -> Iterator[None]:
        """Inside, calls of the named methods are timed; by label the object and the name of its method."""
        for label, (owner, name) in targets.items():
            setattr(owner, name, self._timed(label, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name in targets.values():
                delattr(owner, name)

    def _timed(self, label: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if self.device == "cuda" else (0, 0)
            if self.device == "cuda":
                first.record()
            try:
                return call(*args, **kwargs)
            finally:
                if self.device == "cuda":
                    last.record()
                    self._events.append((label, first, last))
                self.host[label] = self.host.get(label, 0.0) + time.perf_counter() - begin

        return timed

    def on_device(self) -> dict[str, float]:
        """Seconds between the begin and the end of each part in the device's queue."""
        if self.device != "cuda":
            return dict(self.host)
        settle(self.device)
        found: dict[str, float] = {}
        for label, first, last in self._events:
            found[label] = found.get(label, 0.0) + first.elapsed_time(last) / 1e3
        return found

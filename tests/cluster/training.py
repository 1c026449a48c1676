"""A training small enough for two hosts on two cores, and what its runs leave behind, for tests of clusters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.host import Job, wait_until
from tests.cluster.hosts import MachineRoom
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset

# Discriminator from the start, generator sharded over the ranks, fp32: everything that could resume wrongly is in play.
CONFIG: dict[str, Any] = {
    "precision": "fp32",
    "collective_timeout": 0.2,
    "watchdog": {"step_budget": 0},  # which would have to be shorter still, and it is the timeout that is tried here
    "model": {
        "frames": 4,
        "image_size": 32,
        "patch_size": 8,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "structure": {
            "queries": 2,
            "query_width": 8,
            "query_layers": 2,
            "query_hidden": 16,
            "query_heads": 2,
            "channels": 2,
            "downsamplings": 1,
            "conv_width": 4,
        },
        "dynamics": {"channels": 2, "downsamplings": 1},
    },
    "discriminator": {"width": 8, "layers": 1},
    "data": {"frames": 4, "image_size": 32, "global_batch": 2, "workers": 1, "shuffle_window": 4},
    "loss": {"perceptual": "none"},
    "gan": {"start": 1, "warmup": 1, "ramp": 2},
    "optim": {"generator": {"warmup": 1}, "discriminator": {"warmup": 1}},
    "zero": {"stage": 1},
    "checkpoint": {"every": 5},
    "telemetry": {"log_every": 1, "samples_every": 0, "tensorboard": False},
}

STEPS = 16
COLLECTIVE_TIMEOUT_S = 12  # CONFIG["collective_timeout"] in seconds

# What metrics.jsonl says about the machine rather than about the training.
CLOCKS = {"clips_per_s", "tokens_per_s", "step_seconds", "data_wait", "memory_gb", "mfu", "seconds"}


def write_config(path: Path, **settings: Any) -> Path:
    """`CONFIG` as a YAML file, with top-level keys replaced."""
    path.write_text(yaml.safe_dump(CONFIG | settings))
    return path


def write_shards(root: Path) -> Path:
    """Twelve real clips in three shards."""
    return write_dataset(root, split_into_shards(make_clips(12), [4]))


def logged(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl that log a step; a last line that is being written is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if "event" not in row]


def losses(run: Path) -> dict[int, dict[str, float]]:
    """Step -> everything logged that must not depend on how often the run was interrupted, digit for digit."""
    return {row["step"]: {key: value for key, value in row.items() if key not in CLOCKS} for row in logged(run)}


def wait_for_step(run: Path, step: int, timeout: float) -> None:
    """Until `step` has been logged."""
    wait_until(lambda: any(row["step"] >= step for row in logged(run)), timeout, f"step {step} of {run}")


def checkpoints(run: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(int(marker.parent.name.split("-")[1]) for marker in run.glob("checkpoints/step-*/COMPLETE"))


def wait_for_checkpoint(run: Path, timeout: float) -> None:
    """Until the first checkpoint is complete, which is some steps after its own: it is written beside them."""
    wait_until(lambda: bool(checkpoints(run)), timeout, f"a checkpoint of {run}")


class TwoHosts:
    """Two cabled hosts, node-0 and node-1, and shards that both can read."""

    START_S = 240  # seconds to import torch and DeepSpeed on every host of a busy machine, and to train

    def __init__(self, room: MachineRoom, shards: str) -> None:
        self.room = room
        self.shards = shards

    def settings(self, run: Path) -> list[str | Path]:
        """What to write behind launch/train.py."""
        words = ["--config", self.room.folder / "tiny.yaml", f"data.shards={self.shards}"]
        return [*words, f"data.cache_dir={self.room.disk}/cache", f"output={run}", f"steps={STEPS}"]

    def train(self, run: Path, *words: str) -> Job:
        """The same command every time; it is given on the first host."""
        launcher = ["deepspeed", "--hostfile", self.room.hostfile, "--master_addr", "node-0", "launch/train.py"]
        return self.room["node-0"].popen([*launcher, *self.settings(run), *words], log=f"{run.name}.log")

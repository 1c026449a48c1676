"""Checkpoints: what a save, an upload and a resumption cost, and how many bytes there are at each ZeRO stage.

    python -m tests.benchmarks.checkpoint [--to folder|gateway]

One rank, one thread, fp32, a generator of 20 M parameters and a small discriminator. Checkpoints go up one after
another without a pause while steps are timed, in turns with steps without an upload; a real one ends after seconds.
`folder` copies as fast as the disk can; `gateway` is Ceph's S3 on this machine, whose own work and disk then compete
with training. Bytes by stage are measured with `folder`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from data_pipeline.read.loader import Position
from tests.data_pipeline.store.gateway import SCRIPT, Gateway
from tests.tools.ports import free_port
from tests.trainer.cases import as_batch, tiny_config
from tests.trainer.numbers import LOADER
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.files import MARKER, read_marker, step_name, steps_in
from trainer.checkpoint.upload import Uploader, UploadJob
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks

ROUNDS = 4
STEPS = 6
UPLOADS = {"folder": 3, "gateway": 1}
"""One after another, in each round. The gateway holds 4 GB and frees nothing for hours."""
WORDS = [
    *("model.width=384", "model.depth=4", "model.heads=6", "model.patch_size=16", "model.image_size=64"),
    *("model.structure.downsamplings=0", "model.dynamics.downsamplings=0", "data.image_size=64", "data.global_batch=1"),
    *("discriminator.width=20", "discriminator.layers=3", "gan.start=0", "gan.warmup=0", "gan.ramp=0", "steps=1000"),
    *("optim.generator.warmup=1", "optim.discriminator.warmup=1", "checkpoint.keep=1"),
]


@contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """`s3://bucket/prefix` on a gateway of this machine."""
    port = free_port(neighbour=1000)
    subprocess.run([SCRIPT, "start", folder, str(port)], check=True, timeout=120)
    try:
        os.environ.update(Gateway(f"http://127.0.0.1:{port}").environment())
        import boto3

        boto3.session.Session().client("s3").create_bucket(Bucket="benchmark")
        yield "s3://benchmark/run"
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, timeout=60)


class Run:
    """One method with its checkpoints, without a loader."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.method = Autoencoder(config, ranks)
        self.checkpoints = Checkpoints(config, ranks, print)
        size = config.data.image_size
        self.batch = as_batch(torch.rand(config.data.global_batch, 3, config.data.frames, size, size) * 2 - 1)
        self.done = 0

    def step(self) -> float:
        """Wall-clock seconds of a training step."""
        begin = time.perf_counter()
        terms = self.method.step(self.batch, self.done)
        terms["total_loss"].item()
        self.done += 1
        return time.perf_counter() - begin

    def save(self) -> dict[str, float]:
        """What a save that waits for the disk reports."""
        self.checkpoints.save(self.done, Position(0, self.done), self.method, LOADER, wait=True)
        return self.checkpoints.take_metrics()

    def begin_save(self) -> dict[str, float]:
        """What a save through memory reports when training may go on."""
        self.checkpoints.save(self.done, Position(0, self.done), self.method, LOADER)
        return self.checkpoints.take_metrics()

    def resume(self) -> tuple[float, float]:
        """Seconds to check all digests, and to load."""
        begin = time.perf_counter()
        newest = Checkpoints(self.config, self.ranks, print).newest()
        assert newest is not None
        checked = time.perf_counter()
        self.checkpoints.load(newest, self.method)
        return checked - begin, time.perf_counter() - checked

    def steps_while_uploading(self, repeats: int) -> list[float]:
        """Seconds of the steps that go by while the last checkpoint is uploaded so many times."""
        checkpoints = self.checkpoints
        assert checkpoints.remote is not None
        uploader = Uploader(checkpoints.remote, checkpoints.folder, checkpoints.retention, 0, 1, print)
        step = max(steps_in(self.checkpoints.folder, complete=True))
        marker = (self.checkpoints.folder / step_name(step) / MARKER).read_text()
        uploader.start([UploadJob(step, marker, sorted(read_marker(marker)))] * repeats)
        seconds = []
        while uploader.busy():
            seconds.append(self.step())
        return seconds[:-1]  # the upload ended during the last


def bytes_by_stage(folder: Path, ranks: Ranks) -> dict[str, float]:
    """ZeRO stage and precision -> bytes of a checkpoint, bytes a parameter of the generator."""
    found = {}
    for precision in ("fp32", "bf16"):
        for stage in (0, 1, 2, 3):
            words = [f"zero.stage={stage}", f"precision={precision}"]
            run = Run(tiny_config(str(folder / f"{precision}-{stage}"), *WORDS, *words), ranks)
            run.step()
            found[f"{precision}, stage {stage}"] = run.save()["save_bytes"]
    return found


def run(rounds: int = ROUNDS, to: str = "folder") -> dict[str, Any]:
    """Steps a second beside an upload, over steps a second without one; and the other figures."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        uri = str(folder / "remote")
        if to != "folder":
            uri = stack.enter_context(gateway(folder / "ceph"))
        ranks = distributed.start(15)
        stack.callback(distributed.stop)
        torch.set_num_threads(1)
        return _measure(folder, ranks, uri, rounds, to)


def _measure(folder: Path, ranks: Ranks, uri: str, rounds: int, to: str) -> dict[str, Any]:
    measured = Run(tiny_config(str(folder / "run"), *WORDS, f"checkpoint.upload={uri}"), ranks)
    measured.step()
    saves, quiet, busy = [], [], []
    for _ in range(3):
        assert measured.checkpoints.uploads is not None
        measured.checkpoints.uploads.wait(60)
        measured.step()
        saves.append(measured.save())
    measured.checkpoints.uploads.wait(60)
    alone = measured.checkpoints.take_metrics()
    for _ in range(rounds):
        busy += measured.steps_while_uploading(UPLOADS[to])
        quiet += [measured.step() for _ in range(STEPS)]
    checked, loaded = measured.resume()
    measured.checkpoints.uploads.wait(60)
    with_upload, without = statistics.median(busy), statistics.median(quiet)
    return {
        "name": "checkpoint upload",
        "unit": "steps/s",
        "value": 1 / with_upload,
        "limit": 1 / without,
        "limit_is": f"the same step without an upload, {len(quiet)} steps in turns with {len(busy)}",
        "ratio": without / with_upload,
        "target": 0.95,
        "uploaded_to": to,
        "step_seconds": {"beside an upload": with_upload, "without": without},
        "parameters": sum(p.numel() for p in measured.method.generator.module.parameters()),
        "save_seconds": statistics.median(save["save_seconds"] for save in saves),
        "save_bytes": saves[-1]["save_bytes"],
        "upload_seconds_alone": alone["upload_seconds"],
        "resume_seconds": {"digests": checked, "load": loaded},
        "bytes": bytes_by_stage(folder, ranks) if to == "folder" else {},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", choices=UPLOADS, default="folder", help="where checkpoints are uploaded")
    print(json.dumps(run(to=parser.parse_args().to), indent=1))

"""Several GPUs, one rank on each, over NCCL. Nobody has run it on GPUs yet; on the CPU it runs over gloo.

torchrun --nproc_per_node N -m tests.gpu --ranks equal   # ZeRO 0 to 3, with and without overlap_comm, step alike
torchrun --nproc_per_node N -m tests.gpu --ranks raise   # one rank raises an error: all must end, and say why
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import traceback
from pathlib import Path

import torch

from data_pipeline.read.loader import Batch
from tests.gpu.findings import Finding, relative
from tests.gpu.made_up_clips import write_waves
from tests.gpu.small_model import TERMS, small_config, train
from tests.trainer.cases import tiny_config
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.autoencoder_builder import AutoencoderBuilder
from trainer.run import run as run_training

# ZeRO 3 comes last, because it replaces a function of torch in its process.
OVERLAPPED = ("zero.overlap_comm=true", "zero.bucket=5000")  # a bucket so small that there are many
CASES = (
    *(("zero.stage=0",), ("zero.stage=1",), ("zero.stage=1", *OVERLAPPED)),
    *(("zero.stage=2",), ("zero.stage=2", *OVERLAPPED), ("zero.stage=3",)),
)
RAISED_AT = 3
WAIT_S = 60.0


def run(what: str) -> int:
    """One rank's part; exit status."""
    return stages_are_equal() if what == "equal" else one_rank_raises()


def shared_folder() -> Path:
    """The same on every rank of this machine, another one for each command."""
    return Path(tempfile.gettempdir()) / f"vidtwin-ranks-{os.environ['MASTER_PORT']}-{os.getppid()}"


def stages_are_equal() -> int:
    """Steps of the tiny model in fp32 at every stage, and with averaging beside the backward pass, against stage 0."""
    ranks = distributed.start(5)
    bad = False
    try:
        folder, size = shared_folder(), 4 * ranks.world_size
        if ranks.is_main:
            small_config(folder)  # makes the initial weights
        ranks.barrier()
        first: list[dict[str, float]] = []
        for words in CASES:
            method = Autoencoder(small_config(folder, *words, f"data.global_batch={size}"), ranks)
            rows = train(method, ranks)
            first = first or rows
            for term in TERMS:
                apart = max(relative(row[term], other[term]) for row, other in zip(rows, first, strict=True))
                bad = bad or not apart <= 1e-5
                if ranks.is_main:
                    name = f"{ranks.world_size} ranks on {ranks.device.type}, {' '.join(words)}: {term}"
                    print(Finding(name=name, value=apart, against="ZeRO 0", ok=apart <= 1e-5).line(), flush=True)
        ranks.barrier()
        if ranks.is_main:
            shutil.rmtree(folder)
    finally:
        distributed.stop()
    return int(bad)


class RaisingMethod(Autoencoder):
    """Raises an error on the last rank at step `RAISED_AT`."""

    def step(self, batch: Batch, step: int, observed: bool = False) -> dict[str, torch.Tensor]:
        if step == RAISED_AT and self.ranks.rank == self.ranks.world_size - 1:
            raise ZeroDivisionError("the last rank raises this error on purpose")
        return super().step(batch, step, observed)


class RaisingBuilder(AutoencoderBuilder):
    """Builds that method."""

    def build(self, fresh: bool) -> Autoencoder:
        return RaisingMethod(self.config, self.ranks, fresh)


def one_rank_raises() -> int:
    """A training in which one rank fails. Every rank says after how many seconds it has ended, and why.

    It is as it should be where the error's traceback is in the output, and `torchrun` ends within a minute.
    """
    folder, rank, ranks = shared_folder(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank == 0:
        write_waves(folder / "data")
    begin = time.monotonic()
    while not (folder / "data" / "dataset.json").is_file():
        if time.monotonic() - begin > WAIT_S:
            raise TimeoutError(f"rank 0 wrote no {folder}/data in {WAIT_S:.0f} seconds")
        time.sleep(0.1)
    words = [f"data.shards={folder}/data", f"data.global_batch={4 * ranks}", f"data.lanes={ranks}", "steps=20"]
    config = tiny_config(str(folder / "run"), *words, "telemetry.samples_every=0", "data.workers=1")
    begin = time.monotonic()
    try:
        run_training(config, RaisingBuilder)
    except Exception:  # noqa: BLE001  (whatever breaks where another rank has gone is what this shows)
        print(f"rank {rank}: ended after {time.monotonic() - begin:.1f} s with\n{traceback.format_exc()}", flush=True)
        return 1
    finally:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"rank {rank}: ended without an error, which must not be", flush=True)
    return 1

"""Two ranks without DeepSpeed: one gets no batch, the other has its own and is told to stop; then one raises an error.

python -m tests.trainer.faults.stalled DIRECTORY SHARDS
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

import trainer.autoencoder_builder
import trainer.run
from data_pipeline.read.loader import Batch, ClipLoader, Position
from launch import train, training_process
from tests.trainer.cases import tiny_config
from tests.trainer.toy import Toy, ToyBuilder, batches_read, losses
from trainer import distributed
from trainer.config.loader import to_yaml
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.loop import Stopped

DONE, STEPS = 3, 6
LATER_S = 1.5  # the stop comes after the ranks have asked each other in vain
TIMEOUT = timedelta(seconds=40)  # where only one rank stops, the other waits for it in vain


class EachItsOwn(Toy):
    """The ranks have different states, and save them apart."""

    def save(self, directory: Path) -> None:
        torch.save(self.value, directory / f"toy-{self.ranks.rank}.pt")

    def load(self, directory: Path) -> None:
        self.value = torch.load(directory / f"toy-{self.ranks.rank}.pt", weights_only=True)


class Builder(ToyBuilder):
    """Builds such a method."""

    def build(self, fresh: bool) -> EachItsOwn:  # type: ignore[override]
        return EachItsOwn(self.config, self.ranks, self.validation, self.mishaps)


class Stalled(ClipLoader):
    """On rank 0 the data worker hangs after `DONE` batches; rank 1 is told to stop when it has the next one."""

    def read_batch(self, begin: int) -> Batch:
        batch = super().read_batch(begin)
        if self.rank == 0 and batches_read(batch.position) > DONE:
            time.sleep(3600)
        return batch

    def from_position(
        self, position: Position | None = None, while_waiting: Callable[[], None] | None = None
    ) -> Iterator[Batch]:
        for batch in super().from_position(position, while_waiting):
            if self.rank == 1 and batches_read(batch.position) > DONE:
                threading.Timer(LATER_S, os.kill, (os.getpid(), signal.SIGTERM)).start()
            yield batch


class Raising(EachItsOwn):
    """In its third step rank 1 raises an error, while rank 0 waits for rank 1 in a collective call."""

    def step(self, batch: Batch, step: int, observed: bool = False) -> dict[str, torch.Tensor]:
        if step == 2:
            if self.ranks.rank == 1:
                raise RuntimeError("broken on purpose")
            dist.all_reduce(torch.zeros(1))
        return super().step(batch, step, observed)


class RaisingBuilder(ToyBuilder):
    """Builds such a method."""

    def build(self, fresh: bool) -> Raising:  # type: ignore[override]
        return Raising(self.config, self.ranks, self.validation, self.mishaps)


def one_raises(directory: Path, settings: TrainConfig) -> None:
    """Train by the command until rank 1 raises; the ranks say in their logs how that went. It ends the process."""
    file = directory / "settings.yaml"
    file.write_text(to_yaml(settings))
    abort = distributed.abort

    def aborted(ranks: Ranks) -> None:
        print("breaks off", file=sys.stderr, flush=True)
        abort(ranks)

    with (
        mock.patch.object(trainer.autoencoder_builder, "AutoencoderBuilder", RaisingBuilder),
        mock.patch.object(distributed, "abort", aborted),
        mock.patch.object(training_process, "LATER_S", 0.0),
    ):
        print(f"ends with {train.main(['--config', str(file)])}", file=sys.stderr, flush=True)
    os._exit(0)  # as the script ends, but with the status of a rank that did what the test wants to see


def main() -> None:
    directory, shards = Path(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", timeout=TIMEOUT)
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_rank(), torch.device("cpu"), control)

    def config(output: str) -> TrainConfig:
        settings = [f"data.shards={shards}", f"steps={STEPS}", "data.workers=1", "data.shuffle_window=4"]
        logs = ["telemetry.log_every=1", "telemetry.samples_every=0", "telemetry.tensorboard=false"]
        return tiny_config(str(directory / output), *settings, *logs, "checkpoint.every=1000")

    with mock.patch.object(distributed, "start", return_value=ranks), mock.patch.object(distributed, "stop"):
        assert trainer.run.run(config("undisturbed"), Builder) is Stopped.FINISHED
        with mock.patch.object(trainer.autoencoder_builder, "ClipLoader", Stalled):
            assert trainer.run.run(config("run"), Builder) is Stopped.PREEMPTED
        assert trainer.run.run(config("run"), Builder) is Stopped.FINISHED
        assert losses(config("run")) == losses(config("undisturbed"))
        one_raises(directory, config("raising"))


if __name__ == "__main__":
    main()

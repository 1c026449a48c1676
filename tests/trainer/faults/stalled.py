"""Two ranks without DeepSpeed: one gets no batch, the other has its own and is told to stop.

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

import trainer.run
from data_pipeline.read.loader import Batch, ClipLoader, Position
from tests.trainer.cases import tiny_config
from tests.trainer.toy import Toy, batches_read, losses
from trainer import distributed
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.loop import Stopped

DONE, STEPS = 3, 6
LATER_S = 1.5  # the stop comes after the ranks have asked each other in vain
TIMEOUT = timedelta(seconds=40)  # where only one rank stops, the other waits for it in vain


class EachItsOwn(Toy):
    """The ranks have different states, and save them apart."""

    def __init__(self, config: TrainConfig, ranks: Ranks, fresh: bool) -> None:
        super().__init__(config, ranks, None, None, (), None)
        self.name = f"toy-{ranks.rank}.pt"

    def save(self, directory: Path) -> None:
        torch.save(self.value, directory / self.name)

    def load(self, directory: Path) -> None:
        self.value = torch.load(directory / self.name, weights_only=True)


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
        assert trainer.run.run(config("undisturbed"), EachItsOwn) is Stopped.FINISHED
        with mock.patch.object(trainer.run, "ClipLoader", Stalled):
            assert trainer.run.run(config("run"), EachItsOwn) is Stopped.PREEMPTED
        assert trainer.run.run(config("run"), EachItsOwn) is Stopped.FINISHED
    assert losses(config("run")) == losses(config("undisturbed"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""launch/train.py with two mishaps.

In its sixth step rank 1 sleeps for ever, once: the file HUNG then says that it has. And with batches 15 and 16 (an
epoch has five) the loss is a thousand million more.
"""

import os
import sys
import time
from pathlib import Path

from torch import Tensor

from data_pipeline.read.loader import Batch
from launch import train
from trainer.autoencoder import Autoencoder
from trainer.faults import watchdog

watchdog.TOGETHER_S = 2.0
train_step = Autoencoder.step


def sleeps_for_ever() -> None:
    time.sleep(3600)


def step(self: Autoencoder, batch: Batch, step: int, observed: bool = False) -> dict[str, Tensor]:
    """The true step, with a mishap."""
    hung = Path(os.environ["HUNG"])
    if step == 5 and self.ranks.rank == 1 and not hung.exists():
        hung.touch()
        sleeps_for_ever()
    terms = train_step(self, batch, step, observed)
    if batch.position.epoch * 5 + batch.position.consumed // 4 in (15, 16):
        terms["total_loss"] = terms["total_loss"] + 1e9
    return terms


if __name__ == "__main__":
    Autoencoder.step = step  # type: ignore[method-assign]
    sys.exit(train.main())

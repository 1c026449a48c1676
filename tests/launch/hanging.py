"""launch/train.py, but in its sixth step rank 1 sleeps for ever, once: the file HUNG then says that it has."""

import os
import sys
import time
from pathlib import Path

from launch import train
from trainer import watchdog
from trainer.autoencoder import Autoencoder

watchdog.TOGETHER_S = 2.0
train_step = Autoencoder.step


def sleeps_for_ever() -> None:
    time.sleep(3600)


def step(self, batch, step):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """The true step, or none."""
    hung = Path(os.environ["HUNG"])
    if step == 5 and self.ranks.rank == 1 and not hung.exists():
        hung.touch()
        sleeps_for_ever()
    return train_step(self, batch, step)


if __name__ == "__main__":
    Autoencoder.step = step  # type: ignore[method-assign]
    sys.exit(train.main())

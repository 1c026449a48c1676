"""A node whose shared memory is too small for the batches is refused before the first step."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import pytest

from data_pipeline.read.loader import ClipLoader
from tests.trainer.toy import losses, toy
from trainer.config.train import TrainConfig
from trainer.faults import shared_memory
from trainer.loop import Stopped
from trainer.run import Refused, Unready, run

Found = namedtuple("Found", ["f_blocks", "f_bavail", "f_frsize"])

NEED = 614_400  # of the rank's workers; tests/data_pipeline/read/test_shared_memory.py holds what it is against reality


@pytest.mark.parametrize(
    ("size", "free", "outcome"),
    [
        (NEED, NEED, None),
        (NEED - 4096, NEED - 4096, Refused),
        (10 * NEED, NEED - 4096, Unready),
    ],
)
def test_too_small_or_used_by_others(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, size: int, free: int, outcome: type[Exception] | None
) -> None:
    config.checkpoint.staging = ""
    statvfs = os.statvfs
    monkeypatch.setattr(ClipLoader, "shared_bytes", NEED)

    def small(path: Path) -> object:
        return Found(size // 4096, free // 4096, 4096) if str(path) == "/dev/shm" else statvfs(path)

    monkeypatch.setattr(os, "statvfs", small)
    if outcome is None:
        assert run(config, toy()) is Stopped.FINISHED
        return
    with pytest.raises(outcome) as refused:
        run(config, toy())
    message = str(refused.value)
    for part in (
        "/dev/shm of ",
        f"has {size / 1e6:.0f} MB, {free / 1e6:.0f} MB of it free",
        f"up to {NEED / 1e6:.0f} MB",
    ):
        assert part in message
    assert "--shm-size=" in message
    assert "data.workers" in message
    assert not (Path(config.output) / "checkpoints" / "step-00000004").exists()


def test_without_workers_nothing_is_asked(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> tuple[int, int]:
        raise AssertionError

    monkeypatch.setattr(shared_memory, "size_and_free", never)
    assert run(config, toy()) is Stopped.FINISHED
    assert losses(config)

"""One of two ranks whose disk is held for one save, and fails for rank 1 in another (see test_background_save.py).

RANK=r ... python -m tests.trainer.checkpoint.saving_ranks DIRECTORY
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

from data_pipeline.read.loader import Position
from tests.trainer.numbers import LOADER, Number, contents, opened
from trainer import distributed
from trainer.checkpoint import background_save
from trainer.checkpoint.files import copy_and_digest
from trainer.method import Method

PATIENCE_S = 30


def main(folder: Path) -> None:
    ranks = distributed.start(1)
    checkpoints = opened(ranks, folder / "run", (f"checkpoint.staging={folder}",))
    held, fails = threading.Event(), threading.Event()

    def copy(source: Path, target: Path) -> dict[str, Any]:
        assert ranks.rank == 0 or held.wait(PATIENCE_S)
        if fails.is_set() and ranks.rank == 1:
            raise OSError("no space")
        return copy_and_digest(source, target)

    def begin(step: int) -> None:
        method = cast(Method[Any], Number(step + 100 * ranks.rank, ranks.rank))
        checkpoints.save(step, Position(0, 4 * step), method, LOADER)

    background_save.copy_and_digest = copy
    begin(2)
    directory = checkpoints.folder / "step-00000002"
    early = []
    for _ in range(20):
        checkpoints.poll()
        early.append((directory / "COMPLETE").exists())
    ranks.barrier()
    held.set()
    until = time.monotonic() + PATIENCE_S  # the main threads do nothing now, as if they hung
    while not (directory / "COMPLETE").exists() and time.monotonic() < until:
        time.sleep(0.02)
    complete, files = ranks.gather((directory / "COMPLETE").exists()), sorted(contents(directory))
    checkpoints.settle()
    fails.set()
    begin(4)
    error = ""
    try:
        checkpoints.settle()
    except RuntimeError as raised:
        error = str(raised)
    errors = ranks.gather(error)
    left = [path.name for path in folder.glob("vidtwin-*")]
    if ranks.is_main:
        seen = {"early": early, "complete": complete, "files": files, "errors": errors, "left": left}
        (folder / "seen.json").write_text(json.dumps(seen))
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # as launch/train.py leaves

"""Two ranks of a module: forks of this process, which find each other and have a log each (see pair.py).

    python -m tests.trainer.rank_forks SECONDS MODULE DIRECTORY WORD ...

Each rank runs `python -m MODULE DIRECTORY WORD ...` and writes to DIRECTORY/rank0.log or rank1.log. Where this process
is a fork of the warm Python (tests/tools/warm.py), no rank has to import torch and DeepSpeed.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.tools.ports import free_port

GRACE_S = 15  # what the others still have when one rank has failed: they might wait for it for minutes


def rank(number: int, port: str, module: str, words: list[str]) -> None:
    """Become one rank, and run the module."""
    log = os.open(Path(words[0]) / f"rank{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for output in (1, 2):
        os.dup2(log, output)
    world = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(world, RANK=str(number), LOCAL_RANK=str(number))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def statuses(processes: list[BaseProcess], patience: float) -> list[int | None]:
    """How the ranks ended; None for one that was given up."""
    end = time.monotonic() + patience
    while None in (codes := [process.exitcode for process in processes]) and time.monotonic() < end:
        if any(codes):
            end = min(end, time.monotonic() + GRACE_S)
        time.sleep(0.05)
    return codes


def main() -> int:
    """0 where both ranks ended well."""
    patience, module, *words = sys.argv[1:]
    port = str(free_port())
    context = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = [
        context.Process(target=rank, args=(number, port, module, words)) for number in (0, 1)
    ]
    try:
        for process in processes:
            process.start()
        codes = statuses(processes, float(patience))
    finally:
        for process in processes:
            process.kill()
    print(f"the ranks ended with {codes}")
    return int(codes != [0, 0])


if __name__ == "__main__":
    sys.exit(main())

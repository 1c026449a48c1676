"""Process groups of any size, one after the other, without starting Python and DeepSpeed anew for each of them.

A process that calls `in_world` has imported what is slow to import and has started no threads; ranks are its forks.
"""

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tests.tools.ports import free_port
from trainer.engine.start_deepspeed import import_deepspeed, lasting

PATIENCE_S = 300
GRACE_S = 15  # what the others still have when one rank has failed: they might wait for it for minutes


def in_world(size: int, work: Callable[[], Any]) -> Any:
    """Run `work` in `size` processes that find each other through the environment; what rank 0 returned."""
    port = str(free_port())
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.pt"

        def rank(number: int) -> None:
            place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": size, "LOCAL_SIZE": size, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
            found = work()
            if number == 0:
                torch.save(found, result)

        processes = [multiprocessing.get_context("fork").Process(target=rank, args=(number,)) for number in range(size)]
        for process in processes:
            process.start()
        end = time.monotonic() + PATIENCE_S
        while any(process.is_alive() for process in processes) and time.monotonic() < end:
            if any(process.exitcode for process in processes):
                end = min(end, time.monotonic() + GRACE_S)
            time.sleep(0.02)
        for process in processes:
            process.kill()
            process.join()
        codes = [process.exitcode for process in processes]
        assert codes == [0] * size, f"ranks ended with {codes}"
        return torch.load(result, weights_only=True)


def imports() -> None:
    """Import what ranks need, once, before the first fork."""
    os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    import_deepspeed()
    with lasting():
        importlib.import_module("trainer.autoencoder")

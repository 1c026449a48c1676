"""Whether each node has the shared memory that the data workers of its ranks need; asked before the first step."""

from __future__ import annotations

import socket

from data_pipeline.read.shared_memory import FOLDER, REMEDY, size_and_free
from trainer.checkpoint.shared_disks import find_shared_disks
from trainer.distributed import Ranks


class SharedMemoryInUse(RuntimeError):
    """Shared memory would be large enough, but other programs use it."""


def check_shared_memory(ranks: Ranks, need: int, *, free: bool) -> None:
    """Refuse to start where the batches of a node's workers will not fit. Every rank calls it.

    Without this check training runs for some steps, and ends when the workers are as far ahead as they may be.

    Args:
        need: bytes that this rank's workers take; 0 without workers.
        free: ask for the bytes that are free, and not for the size.
    Raises:
        ValueError: shared memory is too small on some node; raised on every rank.
        SharedMemoryInUse: it is large enough on every node, and not enough of it is free on some node.
    """
    needs = ranks.gather(need)
    if not any(needs):
        return
    nodes = find_shared_disks(ranks, FOLDER)
    together = sum(needs[rank] for rank in nodes.mine)
    size, left = size_and_free()
    problem = ""
    if (left if free else size) < together:
        count = len(nodes.mine)
        problem = (
            f"{FOLDER} of {socket.gethostname()} has {size / 1e6:.0f} MB, {left / 1e6:.0f} MB of it free, and the data "
            f"workers of {'a rank' if count == 1 else f'{count} ranks'} there hand over up to {together / 1e6:.0f} MB "
            f"of batches through it; {REMEDY}"
        )
    problems = [text for text in ranks.gather(problem) if text]
    if problems and free:
        raise SharedMemoryInUse(problems[0])
    if problems:
        raise ValueError(problems[0])

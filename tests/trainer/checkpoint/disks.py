"""One of three gloo ranks, the last of which has another disk than the first two (see test_resume_from_store.py).

RANK=r WORLD_SIZE=3 python -m tests.trainer.checkpoint.disks DIRECTORY
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.trainer.cases import tiny_config
from tests.trainer.numbers import resumed, save
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.distributed import Ranks


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "rendezvous"), 3), rank=rank, world_size=3)
    ranks = Ranks(rank, 3, 0, torch.device("cpu"), dist.new_group(backend="gloo"))
    disk = folder / f"disk-{0 if rank < 2 else 2}"
    disk.mkdir(exist_ok=True)
    settings = [f"checkpoint.upload={folder / 'remote'}", "data.global_batch=6"]

    try:
        Checkpoints(tiny_config(str(disk / "run")), ranks)
    except ValueError as error:
        (folder / "refusal").write_text(str(error))
    ranks.barrier()
    assert [path.name for path in disk.iterdir()] == []  # the probes were removed
    ranks.barrier()

    checkpoints = Checkpoints(tiny_config(str(disk / "run"), *settings), ranks)
    assert checkpoints.shared_disks.groups == [[0, 1], [2]]
    assert checkpoints.newest() is None
    save(checkpoints, 2)
    if checkpoints.shared_disks.is_keeper:
        shutil.copytree(checkpoints.folder / "step-00000002", folder / "seen" / str(rank))
    checkpoints.finish(lambda: False)
    ranks.barrier()
    if rank == 2:
        shutil.rmtree(disk / "run")  # the node was replaced
    ranks.barrier()
    assert resumed(Checkpoints(tiny_config(str(disk / "run"), *settings), ranks)) == 2
    ranks.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

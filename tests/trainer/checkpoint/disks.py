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
from trainer.checkpoint.fork import find_parent
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
    other_addresses(folder, disk / "run", ranks)
    ranks.barrier()
    dist.destroy_process_group()


def other_addresses(folder: Path, output: Path, ranks: Ranks) -> None:
    """Checkpoints of steps 4 and 6 lie apart on the disks, and whole at `remote`; `other` holds none."""
    said: list[str] = []

    def opened(upload: str, *settings: str) -> Checkpoints:
        words = (f"checkpoint.upload={folder / upload}", "checkpoint.keep=9", "data.global_batch=6", *settings)
        return Checkpoints(tiny_config(str(output), *words), ranks, said.append)

    def refused(name: str, checkpoints: Checkpoints) -> None:
        """The refusal, as a file of the test."""
        said.clear()
        try:
            checkpoints.newest()
        except ValueError as error:
            (folder / f"{name}-{ranks.rank}").write_text("\n".join([*said, str(error)]))
        ranks.barrier()

    checkpoints = opened("remote")
    assert resumed(checkpoints) == 2
    for step in (4, 6):
        save(checkpoints, step)
        checkpoints.finish(lambda: False)
    refused("back", opened("remote", "checkpoint.resume=4"))
    refused("back-elsewhere", opened("other", "checkpoint.resume=4"))
    refused("elsewhere", opened("other"))
    assert (
        find_parent(tiny_config(str(output) + "-fork", f"fork_from={folder / 'remote'}@4", "steps=9"), ranks).step == 4
    )
    if ranks.is_main:
        shutil.copytree(folder / "remote" / "step-00000004", folder / "other" / "step-00000004")
    ranks.barrier()
    refused("elsewhere-with-an-older-one", opened("other"))
    assert resumed(opened("other", "checkpoint.resume=4")) == 4
    ranks.barrier()
    if ranks.is_main:  # as if the last upload had not begun
        shutil.rmtree(folder / "remote" / "step-00000006")
    ranks.barrier()
    assert resumed(opened("remote")) == 4
    assert not (output / "checkpoints" / "step-00000006").exists()
    assert (output / "checkpoints" / "incomplete-step-00000006").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

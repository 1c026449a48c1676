"""This process among the others: device, rank, process groups, and DeepSpeed quietened.

DeepSpeed is imported in `trainer/engine/` only, and never before `start` has settled its accelerator.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trainer.engine.start_deepspeed import start_deepspeed
from trainer.engine.torch_private import set_default_timeout


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among the ranks of a run.

    Attributes:
        local_rank: number among the ranks of this machine.
        control: gloo group of all ranks, for small messages that must not wait for a GPU.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: Any

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints and writes shared files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank, on the host."""
        dist.barrier(group=self.control)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank; on the host."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank; on the host."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]


def device_kind() -> str:
    """'cuda' where torch sees a GPU and DS_ACCELERATOR does not ask for the CPU, else 'cpu'.

    Raises:
        ValueError: DS_ACCELERATOR names another kind, or a GPU where there is none.
    """
    wanted = os.environ.get("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    if wanted not in ("cpu", "cuda"):
        raise ValueError(f"DS_ACCELERATOR={wanted} is not supported; set DS_ACCELERATOR=cpu or cuda, or unset it")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "DS_ACCELERATOR=cuda needs a GPU, and torch sees none here; set DS_ACCELERATOR=cpu, or unset it"
        )
    return wanted


def start(timeout_minutes: float) -> Ranks:
    """Join the process group described by the environment, or form a group of one where there is none.

    A launcher (deepspeed, torchrun) sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
    """
    kind = device_kind()
    os.environ["DS_ACCELERATOR"] = kind
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        device = torch.device("cpu")
        _share_cores()
    timeout = timedelta(minutes=timeout_minutes)
    set_default_timeout(timeout)  # a rank that hangs in one of DeepSpeed's groups must be given up in time as well
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timeout)
    start_deepspeed()
    control = dist.new_group(backend="gloo", timeout=timeout)
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device, control)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _share_cores() -> None:
    """Divide the cores among this machine's ranks, unless OMP_NUM_THREADS already says how."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_SIZE", "1"))))


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

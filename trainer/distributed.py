"""This process among the others: device, rank, process groups, and DeepSpeed quietened.

DeepSpeed is imported in `trainer/engine/` only, and never before `start` has settled its accelerator.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.config.run import Device
from trainer.engine.device import own_device
from trainer.engine.start_deepspeed import deepspeed_version, start_deepspeed
from trainer.engine.torch_private import set_default_timeout
from trainer.join.equality import versions
from trainer.join.guest import Guest
from trainer.join.launch import Launch, Member
from trainer.join.meeting import meet

ABORT_S = 5.0


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

    def with_own_group(self) -> Ranks:
        """The same ranks with another gloo group, for a thread that talks to the other ranks' threads.

        Every rank calls this, in its main thread.
        """
        return replace(self, control=dist.new_group(backend="gloo"))

    def barrier(self) -> None:
        """Wait for every rank, on the host."""
        dist.barrier(group=self.control)

    def total(self, *counts: float) -> list[float]:
        """The sum over ranks of each number, on every rank; on the host, in one message."""
        numbers = torch.tensor(counts, dtype=torch.float64)
        dist.all_reduce(numbers, group=self.control)
        return [float(number) for number in numbers]

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


def start(
    timeout_minutes: float,
    device: torch.device | None = None,
    *,
    output: str = "",
    equal: Mapping[str, str] | None = None,
    setting: str = "collective_timeout",
) -> Ranks:
    """Meet the other ranks of the launch that the environment describes, or form a group of one where there is none.

    A launcher (deepspeed, torchrun) sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Args:
        timeout_minutes: how long a rank waits for the others, before they have joined and in a collective call.
        device: from `own_device`; None stands for that of `device=auto`.
        output: the run's output directory, by which ranks of another run at the same port are told apart.
        equal: what must be equal on all ranks, as key -> text; the versions of torch and DeepSpeed if nothing is given.
        setting: the key of `timeout_minutes`, for messages; empty where the user cannot set it.
    Raises:
        NotOneRun: the port belongs to another run or program, or the ranks differ in what must be equal.
        Absent: ranks are missing.
    """
    device = own_device(Device.auto) if device is None else device
    os.environ["DS_ACCELERATOR"] = device.type  # so that DeepSpeed takes the same device
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
    timeout = timedelta(minutes=timeout_minutes)
    set_default_timeout(timeout)  # a rank that hangs in one of DeepSpeed's groups must be given up in time as well
    member = Member.of_environment(os.environ)
    texts = dict(versions() if equal is None else equal) | {"device": device.type}
    launch = Launch.of_environment(output, os.environ)
    store = meet(Guest(launch, member, texts, timeout, partial(print, flush=True), setting))
    begin = partial(dist.init_process_group, store=store, rank=member.rank, world_size=member.ranks, timeout=timeout)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # With its device, NCCL connects the ranks now, so that a broken network shows here and not in a step.
        begin("nccl", device_id=device)
    else:
        begin("gloo")
    start_deepspeed()
    control = dist.new_group(backend="gloo", timeout=timeout)
    ranks = Ranks(member.rank, member.ranks, member.local_rank, device, control)
    if "OMP_NUM_THREADS" not in os.environ:
        places = ranks.gather(this_place())
        torch.set_num_threads(threads_of(places[ranks.rank], places))
    return ranks


Place = tuple[str, frozenset[int]]
"""A machine, and the cores on which a process of it may run."""


def this_place() -> Place:
    """Where this process may run. Containers of one machine have the same boot id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), frozenset(os.sched_getaffinity(0))


def threads_of(own: Place, places: Sequence[Place]) -> int:
    """Threads of a rank when ranks that may run on the same cores divide these.

    Args:
        own: the rank's place.
        places: of all ranks, this one included.
    """
    machine, cores = own
    sharing = sum(1 for other, others_cores in places if other == machine and cores & others_cores)
    return max(1, len(cores) // sharing)


def described(ranks: Ranks, precision: str) -> list[str]:
    """Two lines that say what a run trains on, and with which libraries; every rank calls it."""
    on_gpu = ranks.device.type == "cuda"
    name = torch.cuda.get_device_name(ranks.device) if on_gpu else "CPU"
    found = ranks.gather((socket.gethostname(), name))
    names = Counter(name for _, name in found)
    devices = ", ".join(f"{count} x {name}" if on_gpu else name for name, count in names.items())
    world = f"{_counted(len(found), 'rank')} on {_counted(len({node for node, _ in found}), 'node')}"
    versions = [f"torch {torch.__version__}"]
    if on_gpu:
        versions += [f"CUDA {torch.version.cuda}", "NCCL " + ".".join(map(str, torch.cuda.nccl.version()))]
    versions += [f"DeepSpeed {deepspeed_version()}"]
    return [f"device: {devices}; {world}; precision {precision}", ", ".join(versions)]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def stop() -> None:
    """Leave the process group. With NCCL this waits for the other ranks to leave too."""
    if dist.is_initialized():
        dist.destroy_process_group()


def abort(ranks: Ranks) -> None:
    """Break off what this rank has begun with the others after an error, and wait for none; the process must end then.

    The others may be in a collective call which this rank never joins, so that `stop` would wait for ever with NCCL.
    Should even this call hang, it is given up after `ABORT_S` seconds. The other ranks notice the end of the process.
    A rank that is alone leaves its group as usual.
    """
    if ranks.world_size == 1:
        stop()
        return

    def break_off() -> None:
        for group in (dist.group.WORLD, ranks.control):
            if group is not None:
                group.abort()

    thread = threading.Thread(target=break_off, name="abort", daemon=True)
    thread.start()
    thread.join(ABORT_S)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

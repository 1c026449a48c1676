"""Which launch a process belongs to, as the launcher's environment says it, and the place of the process there."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

OTHER_PORT = (
    "give each run on a machine a port of its own: deepspeed --master_port, torchrun --master-port, "
    "launch/cluster/node.py --port, or MASTER_PORT"
)


def one_run(differing: Iterable[str]) -> str:
    """The remedy where two launches that differ so are meant to be one run."""
    return f"if this is meant to be one run, give every node the same {' and '.join(differing)}"


class NotOneRun(ValueError):
    """The processes that are to meet cannot be one run; the message says what is wrong or differs, and the remedy."""


@dataclass(frozen=True)
class Launch:
    """What tells two launches apart that meet at one port.

    The configuration files are not among it: a node whose file is older belongs to the run, and is to be told so.

    Attributes:
        output: the run's output directory as an absolute path; empty where nothing is trained.
        ranks: how many processes the launcher starts.
        run_id: the launcher's or SLURM's number of the job; empty where the environment has none.
    """

    output: str
    ranks: int
    run_id: str = ""

    @classmethod
    def of_environment(cls, output: str, environment: Mapping[str, str]) -> Launch:
        """This process's launch. torchrun's `none` is its word for no run id."""
        torchrun, slurm = environment.get("TORCHELASTIC_RUN_ID", "none"), environment.get("SLURM_JOB_ID", "")
        run_id = f"torchrun {torchrun}" if torchrun != "none" else f"SLURM job {slurm}" if slurm else ""
        return cls(os.path.abspath(output) if output else "", int(environment["WORLD_SIZE"]), run_id)

    def differences(self, here: Launch) -> dict[str, str]:
        """What differs between another launch (`self`) and the launch of the process that asks (`here`).

        A run id counts where both have one: ssh, for instance, does not hand SLURM's on.

        Returns:
            The name of each thing that differs -> both values, in words.
        """
        found = {}
        if self.output != here.output:
            found["output"] = f"output={self.output or '(none)'} there and output={here.output or '(none)'} here"
        if self.ranks != here.ranks:
            found["number of ranks"] = f"{self.ranks} ranks there and {here.ranks} here"
        if self.run_id and here.run_id and self.run_id != here.run_id:
            found["run id"] = f"{self.run_id} there and {here.run_id} here"
        return found

    def as_dict(self) -> dict[str, str | int]:
        """The launch as JSON keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Member:
    """A process of a launch.

    Attributes:
        address, port: where rank 0 is found.
        agent_store: torchrun's agent has opened a store there, so that rank 0 need not.
        name: says which process it is, for people, and is unlike that of every other process.
    """

    rank: int
    ranks: int
    local_rank: int
    address: str
    port: int
    agent_store: bool = False
    name: str = field(
        default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()} ({secrets.token_hex(4)})"
    )

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Member:
        """The launch that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT say, which every launcher sets.

        A process that is alone meets nobody and needs no port.

        Raises:
            NotOneRun: MASTER_ADDR or MASTER_PORT is missing, or is no port.
        """
        rank, ranks = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        if ranks == 1:
            return cls(rank, ranks, local_rank, "", 0)
        address, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
        if not address or not port.isdigit() or not 0 < int(port) < 2**16:
            raise NotOneRun(
                f"{ranks} ranks meet at MASTER_ADDR={address} MASTER_PORT={port}, which is no address with a port; "
                "start them with deepspeed, torchrun or launch/cluster/node.py, or set both variables"
            )
        agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(rank, ranks, local_rank, address, int(port), agent)

    @property
    def node(self) -> str:
        """The machine, or the container, of the process."""
        return socket.gethostname()

    @property
    def where(self) -> str:
        """Where rank 0 is found, for messages."""
        return f"{self.address}:{self.port}"

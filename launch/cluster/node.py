"""Start this node's ranks where no scheduler and no ssh does it: one process per GPU, found by `env://`.

    python launch/cluster/node.py --nodes 4 --node-rank 2 --ranks 8 --master node-0 -- launch/train.py --config ...

Made to be the first process of a container: SIGTERM, SIGINT, SIGUSR1 and SIGHUP reach every rank at once (the
`deepspeed` command keeps them to itself, its launcher passes them on to one rank after another), and no rank outlives
this process. Under nohup SIGHUP is ignored by all.
The exit status is that of the first rank that failed, 128 + n for signal n.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.2
MOST_PORT = 65535


def rank_environment(nodes: int, node_rank: int, ranks: int, local_rank: int, master: str, port: int) -> dict[str, str]:
    """What one rank must find in its environment."""
    return {
        "RANK": str(node_rank * ranks + local_rank),
        "WORLD_SIZE": str(nodes * ranks),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
    }


def parse(argv: Sequence[str] | None, environment: Mapping[str, str]) -> argparse.Namespace:
    """Options; `--node-rank` is taken from an Indexed Job's JOB_COMPLETION_INDEX when it is not given."""
    # These imports take longer than all the rest, and come after `main` has blocked the signals.
    from launch.command_line import Parser
    from launch.option_types import seconds, whole_number

    parser = Parser(prog="launch/cluster/node.py", description=__doc__)
    count = whole_number(1)
    parser.add_argument("--nodes", type=count, required=True, metavar="N", help="number of nodes")
    parser.add_argument(
        "--node-rank",
        type=whole_number(0),
        metavar="N",
        help="this node's number, from 0 (default: $JOB_COMPLETION_INDEX)",
    )
    parser.add_argument(
        "--ranks", type=count, required=True, metavar="N", help="ranks on this node: its number of GPUs"
    )
    parser.add_argument("--master", required=True, help="name or address of node 0 as the other nodes reach it")
    parser.add_argument(
        "--port", type=count, default=29500, metavar="N", help="free TCP port on node 0, up to 65535 (%(default)s)"
    )
    parser.add_argument(
        "--grace", type=seconds, default=30, help="seconds the other ranks get after one has failed (%(default)s)"
    )
    parser.add_argument("script", nargs="+", help="script and its arguments, after `--`")
    options = parser.parse_args(argv)
    if options.node_rank is None:
        index = environment.get("JOB_COMPLETION_INDEX", "")
        if not index.isdigit():
            parser.error("--node-rank is needed: JOB_COMPLETION_INDEX is not set here")
        options.node_rank = int(index)
    if options.node_rank >= options.nodes:
        parser.error(f"--node-rank {options.node_rank} must lie in 0 ... {options.nodes - 1} (--nodes {options.nodes})")
    if options.port > MOST_PORT:
        parser.error(f"argument --port: {options.port} must be at most {MOST_PORT}")
    return options


def supervise(ranks: Sequence[subprocess.Popen[bytes]], grace: float) -> int:
    """Wait for every rank, and no longer than `grace` seconds after the first failure.

    Returns:
        0, or the status of the first rank that failed.
    """
    status, deadline = 0, float("inf")
    while None in (ended := [rank.poll() for rank in ranks]):
        if any(ended) and not status:
            # With gloo the others see the broken connection and end by themselves. With NCCL they wait in a collective
            # call, and are killed.
            status, deadline = next(filter(None, ended)), time.monotonic() + grace
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(POLL_SECONDS)
    status = status or next(filter(None, ended), 0)
    return status if status >= 0 else 128 - status


def main(argv: Sequence[str] | None = None) -> int:
    """Start, forward signals, wait."""
    # A signal that comes before all ranks are started is for those that are not there yet as well, so it waits. The
    # kernel keeps a blocked signal even for the first process of a container, which otherwise loses it.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    options = parse(argv, os.environ)
    libc = ctypes.CDLL(None)
    ranks: list[subprocess.Popen[bytes]] = []
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    forwarded = [number for number in FORWARDED if not (nohup and number == signal.SIGHUP)]

    def forward(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(number)

    def begin() -> None:  # of a rank
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in forwarded:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)

    for number in forwarded:
        signal.signal(number, forward)
    for local_rank in range(options.ranks):
        place = rank_environment(
            options.nodes, options.node_rank, options.ranks, local_rank, options.master, options.port
        )
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-u", *options.script],
                env={**os.environ, **place},
                preexec_fn=begin,
            )
        )
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    status = supervise(ranks, options.grace)
    for number in forwarded:  # one that comes now must not hide the ranks' status
        signal.signal(number, signal.SIG_IGN)
    return status


if __name__ == "__main__":
    sys.exit(main())

"""NCCL's flight recorder: after a hang it says for each rank which collective call the rank waits in.

torch records the last calls of each rank in memory. This file tells torch, by environment variables that it reads when
the process group is made, to keep that record and where to write it; and `request_dump` asks for it. The request is a
byte in a named pipe that a thread of torch looks at once a second, so nothing here waits for NCCL or for a device.
The variables are those of torch 2.11 to 2.14. All of this does nothing where ranks talk by gloo. It was never run with
NCCL.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CALLS = 2000
"""How many of the last calls each rank remembers: torch's own default, in host memory."""
PIPE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
DUMP, OLD_DUMP = "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"
SIZE, OLD_SIZE = "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"
PREFIX = "nccl-rank-"


@contextmanager
def switched_on(directory: Path, enabled: bool) -> Iterator[None]:
    """Context around the life of the process group. What the user has set in the environment stays as it is.

    Args:
        directory: where the dumps go, as `nccl-rank-0` and so on; torch does not create it, the watchdog does.
        enabled: whether the ranks talk by NCCL.
    """
    if not enabled:
        yield
        return
    pipes = tempfile.mkdtemp(prefix="vidtwin-nccl-")
    if OLD_DUMP not in os.environ:
        os.environ.setdefault(DUMP, str(directory.absolute() / PREFIX))
    if OLD_SIZE not in os.environ:
        os.environ.setdefault(SIZE, str(CALLS))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault(PIPE, f"{pipes}/")
    try:
        yield
    finally:
        shutil.rmtree(pipes, ignore_errors=True)


def request_dump(rank: int) -> str:
    """Ask torch to write what it has recorded, within some two seconds. Returns a line for people.

    The line is empty where nobody listens: with gloo, or with a flight recorder that the user has switched off.
    """
    if PIPE not in os.environ:
        return ""
    try:
        pipe = os.open(f"{os.environ[PIPE]}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # there is no such pipe, or no thread of torch has it open
        return ""
    try:
        os.write(pipe, b"1")
    except OSError as error:
        return f"rank {rank}: NCCL's flight recorder was not asked ({error.strerror})\n"
    finally:
        os.close(pipe)
    place = os.environ.get(DUMP) or os.environ.get(OLD_DUMP, "")
    return (
        f"rank {rank}: the last collective calls go to {place}{rank}; when every rank's are there, `python -m "
        f"torch.distributed.flight_recorder.fr_trace -p {Path(place).name} {Path(place).parent}` compares them\n"
    )

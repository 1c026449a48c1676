"""Processes that work on data from outside, and end with the process that started them, however that one ends."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

_PR_SET_PDEATHSIG = 1
starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="child-starter")
"""The thread that starts all such processes. The kernel sends the signal of a parent's death when the thread that
forked the child ends, so this thread lives as long as the process."""


def ended(process: subprocess.Popen[bytes], wait_s: float) -> str:
    """Kill a child if it still runs after some time, and wait for its end.

    Args:
        process: the child.
        wait_s: seconds that it may take to end by itself.
    Returns:
        How it ended: by which signal, or with which exit status.
    """
    try:
        code = process.wait(timeout=wait_s)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def end_with_parent(parent: int) -> bool:
    """Called first in a new child: the kernel kills it when its parent dies, and signals to the group pass it by.

    Args:
        parent: the process id of the parent.
    Returns:
        Whether the parent still lived; where it did not, the child must end by itself.
    Raises:
        OSError: the kernel refused.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole process group, and the parent decides
        signal.signal(number, signal.SIG_IGN)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return os.getppid() == parent

"""A child process that decodes files of strangers; parent and child send lines of JSON, followed by raw bytes.

The parent unpickles nothing, because the child has decoded files from strangers. When the parent dies, in whatever way,
the kernel kills the child (PR_SET_PDEATHSIG). What a child does is the `serve` of the module that it runs.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.outside.child import end_with_parent, ended, starter

PAGE = resource.getpagesize()
_START_S = 60.0  # seconds that a new child may take to import its libraries
_MEMORY_CHECK_S = 0.1  # seconds between two checks of the child's memory
_SILENT_S = 60.0  # seconds without a byte in the middle of an answer, after which the child counts as hung
_MAX_LINE = 64 * 2**20


class Child:
    """The parent's end of one child process; `Child.start` makes it."""

    def __init__(self, module: str, settings: dict[str, Any], memory_bytes: int | None, silent_s: float | None) -> None:
        parent_end, child_end = socket.socketpair()
        parent_end.settimeout(_SILENT_S)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        with child_end:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(child_end.fileno()), str(os.getpid())],
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        self._socket = parent_end
        self._stream = parent_end.makefile("rb")
        try:
            self.send(settings)
            self.receive(_START_S, memory_bytes)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"the decoder's process did not start: {self.end(0.5)}") from error
        if silent_s is not None:
            parent_end.settimeout(silent_s)

    @staticmethod
    def start(
        module: str, settings: dict[str, Any], *, memory_bytes: int | None = None, silent_s: float | None = None
    ) -> Child:
        """A child that is ready.

        Args:
            module: what the child runs; it calls `run_child`.
            settings: the first message; the child answers it when it is ready.
            memory_bytes: most resident memory of the child until then; None for any.
            silent_s: seconds without a byte of an answer, after which the child counts as hung.
        Raises:
            RuntimeError: the child did not start.
        """
        return starter.submit(Child, module, settings, memory_bytes, silent_s).result()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message. Raises: ConnectionError: the child has ended."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float, memory_bytes: int | None) -> dict[str, Any]:
        """The next message, of a child that sends one for each that it gets.

        Raises:
            TimeoutError: it does not come within `timeout_s` seconds, or stops in its middle.
            MemoryError: the child has more than `memory_bytes` meanwhile.
            EOFError, ConnectionError: the child has ended.
        """
        deadline = time.monotonic() + timeout_s
        while not select.select([self._socket], [], [], min(_MEMORY_CHECK_S, max(0.0, deadline - time.monotonic())))[0]:
            if time.monotonic() >= deadline:
                raise TimeoutError
            if memory_bytes is not None and _resident_bytes(self.process.pid) > memory_bytes:
                raise MemoryError
        return self.next()

    def next(self) -> dict[str, Any]:
        """The next message, also of a child that sends many in a row.

        Raises:
            TimeoutError: no byte has come for the time after which a child counts as hung.
            EOFError, ConnectionError: the child has ended.
        """
        line = self._stream.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        return answer

    def fill(self, buffer: memoryview) -> None:
        """Fill the buffer with the bytes behind a message. Raises: as `next`."""
        filled = 0
        while filled < len(buffer):
            count = self._stream.readinto(buffer[filled:])
            if not count:  # the child was killed while it sent, and half a clip must not pass for a clip
                raise EOFError
            filled += count

    def end(self, wait_s: float = 0.0) -> str:
        """Kill the child if it still runs after `wait_s`; return how it ended."""
        how = ended(self.process, wait_s)
        self._stream.close()
        self._socket.close()
        return how


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):  # the process has just ended, which the socket shows next
        return 0


def run_child(serve: Callable[[socket.socket], None]) -> None:
    """What a child process runs, with the arguments that `Child` gives it, until the parent closes the connection."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    if not end_with_parent(parent):
        return
    with socket.socket(fileno=descriptor) as connection:
        try:
            serve(connection)
        except ConnectionError:
            return

"""Processes that work on data from outside, and end with the process that started them, however that one ends.

Parent and child send lines of JSON over a socket pair, and raw bytes behind a line that announces them. The parent
unpickles nothing, because the child has worked on data of strangers. When the parent dies, in whatever way, the kernel
kills the child (PR_SET_PDEATHSIG). What a child does is the `serve` of the module that it runs (`run_child`).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

PAGE = resource.getpagesize()
_PR_SET_PDEATHSIG = 1
_MEMORY_CHECK_S = 0.1
"""Seconds between two checks of a child's memory."""
_LONGEST_PAUSE_S = 60.0
"""Seconds after which a wait for a message looks at the clock again."""
_SILENT_S = 60.0
"""Seconds without a byte in the middle of a message, after which a child counts as hung."""
_MOST_LINE = 64 * 2**20


def _new_starter() -> ThreadPoolExecutor:
    """The thread that starts all such processes. The kernel sends the signal of a parent's death when the thread that
    forked the child ends, so this thread lives as long as the process.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="child-starter")


_starter = _new_starter()


def _after_fork() -> None:
    """A fork of this process has none of its threads, so it gets a starter of its own."""
    global _starter
    _starter = _new_starter()


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a child process runs.

    Attributes:
        module: it calls `run_child`.
        named: the process in messages, such as `the decoder's process`.
        settings: the first message, a line of JSON; the child answers it when it is ready.
        environment: variables that differ from those of this process.
        quiet: whether what the child writes to standard error goes nowhere, as its standard output always does.
        descriptors: open files that the child gets under the same numbers.
        start_s: seconds that the child may take until it is ready: it imports its libraries.
        silent_s: seconds without a byte in the middle of a message, after which the child counts as hung; None for a
            minute.
        memory_bytes: most resident memory of the child until it is ready; None for any.
    """

    module: str
    named: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    quiet: bool = False
    descriptors: Sequence[int] = ()
    start_s: float = 60.0
    silent_s: float | None = None
    memory_bytes: int | None = None


class NotStarted(ChildProcessError):
    """A child process did not start, so this machine is in trouble; the message names the process and says why."""


class Child:
    """The parent's end of one child process; `Child.start` makes it."""

    def __init__(self, program: Program) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(_SILENT_S)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", program.module, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno(), *program.descriptors],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL if program.quiet else None,
                    env=environment | dict(program.environment),
                )
            except OSError as error:  # the machine has no memory or no process left
                ours.close()
                raise NotStarted(f"{program.named} did not start: {error.strerror}") from error
        self._socket, self._stream = ours, ours.makefile("rb")
        try:
            self.send(dict(program.settings))
            self.receive(program.start_s, program.memory_bytes)
        except (OSError, EOFError) as error:
            raise NotStarted(f"{program.named} did not start: {self.end(0.5)}") from error
        except MemoryError:
            self.end()
            raise
        if program.silent_s is not None:
            ours.settimeout(program.silent_s)

    @staticmethod
    def start(program: Program) -> Child:
        """A child that is ready.

        Raises:
            NotStarted: the child did not start.
            MemoryError: it took more than `program.memory_bytes`.
        """
        return _starter.submit(Child, program).result()

    def send(self, message: dict[str, Any], data: bytes | memoryview = b"") -> None:
        """Send a message, and raw bytes behind it.

        Raises:
            ConnectionError: the child has ended.
            TimeoutError: the child takes no byte for the time after which it counts as hung.
        """
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        if data:
            self._socket.sendall(data)

    def receive(self, timeout_s: float, memory_bytes: int | None = None) -> dict[str, Any]:
        """The next message, of a child that sends one for each that it gets.

        Args:
            timeout_s: seconds that the message may take.
            memory_bytes: most resident memory of the child meanwhile; None for any.
        Raises:
            TimeoutError: it does not come in time, or stops in its middle.
            MemoryError: the child has more than `memory_bytes` meanwhile.
            EOFError, ConnectionError: the child has ended.
        """
        deadline = time.monotonic() + timeout_s
        while not readable(self._socket, self._pause(deadline, memory_bytes)):
            if time.monotonic() >= deadline:
                raise TimeoutError
            if memory_bytes is not None and _resident_bytes(self.process.pid) > memory_bytes:
                raise MemoryError
        return self.next()

    @staticmethod
    def _pause(deadline: float, memory_bytes: int | None) -> float:
        left = max(0.0, deadline - time.monotonic())
        return min(left, _LONGEST_PAUSE_S if memory_bytes is None else _MEMORY_CHECK_S)

    def next(self) -> dict[str, Any]:
        """The next message, also of a child that sends many in a row.

        Raises:
            TimeoutError: no byte has come for the time after which a child counts as hung.
            EOFError, ConnectionError: the child has ended.
        """
        line = self._stream.readline(_MOST_LINE)
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

    def read(self, count: int, most: int) -> bytearray:
        """The `count` bytes behind a message.

        Raises:
            EOFError: also where the child announced more than `most` bytes, or fewer than none.
            TimeoutError, ConnectionError: as `next`.
        """
        if not 0 <= count <= most:
            raise EOFError
        data = bytearray(count)
        self.fill(memoryview(data))
        return data

    def end(self, wait_s: float = 0.0) -> str:
        """Kill the child if it still runs after `wait_s` seconds.

        Returns:
            How it ended: by which signal, or with which exit status.
        """
        try:
            code = self.process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._stream.close()
        self._socket.close()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class OneChild:
    """At most one child process of a program at a time: started when it is needed, and again after it has ended.

    Several threads must not use it at once, apart from `kill`.

    Args:
        program: gives what the next child runs.
        serves: how many calls of `running` get the same child. Then another one takes its place, and also where the
            child has ended by itself between two calls; so a child must not be asked for what it was told before. None
            keeps a child until `close`.
    Attributes:
        starts: how many times a child has been started.
        served: how many calls of `running` have got the child; 0 while no child runs.
    """

    def __init__(self, program: Callable[[], Program], serves: int | None = None) -> None:
        assert serves is None or serves > 0
        self._program, self._serves = program, serves
        self.starts = self.served = 0
        self._child: Child | None = None
        self._killed = False  # by `kill`

    @property
    def pid(self) -> int | None:
        """The child's process id; None while no child runs."""
        return self._child.process.pid if self._child else None

    def running(self) -> Child:
        """The child; another one where the last one was ended. Raises: as `Child.start`."""
        if self._child is not None and self._is_used_up(self._child):
            self.close()
        if self._child is None:
            self._child = Child.start(self._program())
            self.starts += 1
            self._killed = False
        self.served += 1
        return self._child

    def _is_used_up(self, child: Child) -> bool:
        """Whether another child has to take its place. One that `kill` ended stays: its thread must see it."""
        if self._serves is None or self._killed:
            return False
        return self.served >= self._serves or child.process.poll() is not None

    def kill(self) -> None:
        """Kill the child, if one runs, from any thread: the thread that waits for the child meets its end."""
        if (child := self._child) is not None:
            self._killed = True
            child.process.kill()

    def close(self, wait_s: float = 0.0) -> str:
        """End the child, if one runs.

        Args:
            wait_s: seconds that the child may take to end by itself before it is killed. A crash reaches the socket a
                moment before the exit status, so half a second tells by which signal it ended.
        Returns:
            How the child ended.
        """
        child, self._child = self._child, None
        self.served, self._killed = 0, False
        return child.end(wait_s) if child else "not running"


def readable(connected: socket.socket, wait_s: float) -> bool:
    """Whether the next bytes of a socket, or its end, come within `wait_s` seconds.

    This is not asked with `select`, which refuses the numbers of files from 1024 on.
    """
    poll = select.poll()
    poll.register(connected, select.POLLIN)
    return bool(poll.poll(math.ceil(1000 * wait_s)))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):  # the process has just ended, which the socket shows next
        return 0


class Connection:
    """The child's end. `run_child` makes it.

    Attributes:
        socket: to the parent.
        settings: the first message.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._stream: BinaryIO = connected.makefile("rb")
        self.settings = self.receive() or {}

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the parent has closed the connection."""
        line = self._stream.readline()
        message: dict[str, Any] | None = json.loads(line) if line else None
        return message

    def read(self, count: int) -> bytes:
        """The `count` bytes behind a message; fewer where the parent has closed the connection."""
        return self._stream.read(count)

    def send(self, message: dict[str, Any], *data: bytes | memoryview) -> None:
        """Send a message, and raw bytes behind it. Raises: ConnectionError: the parent has closed the connection."""
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        for part in data:
            self.socket.sendall(part)


def run_child(serve: Callable[[Connection], None]) -> None:
    """What a child process runs, with the arguments that `Child` gives it, until the parent closes the connection.

    Args:
        serve: sends a first message when it is ready, and answers the parent's.
    """
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    if not _end_with_parent(parent):
        return
    with closing(socket.socket(fileno=descriptor)) as connected:
        try:
            serve(Connection(connected))
        except ConnectionError:
            return


def _end_with_parent(parent: int) -> bool:
    """The kernel kills this process when its parent dies, and signals to the group pass it by.

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

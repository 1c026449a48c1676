"""`cut_clips` in a child process: a decoder that crashes, hangs or takes too much memory costs one row, not the worker.

The child process serves one row after another and is replaced after a crash, a timeout or a lack of memory. A row
counts as the cause of a crash only when the child crashes on it twice. Parent and child send lines of JSON followed by
raw bytes over a socket pair. The parent unpickles nothing, because the child has decoded files from strangers. When the
parent dies, in whatever way, the kernel kills the child (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.result import CutResult, EncodedClip, Rejection
from data_pipeline.cut.video import UndecodableVideo
from data_pipeline.outside.child import end_with_parent, starter

_START_S = 60.0  # seconds that a new child may take to import its libraries
_MEMORY_CHECK_S = 0.1  # seconds between two checks of the child's memory
_SILENT_S = 60.0  # seconds without a byte in the middle of an answer, after which the child counts as hung
_MAX_LINE = 64 * 2**20
_PAGE = resource.getpagesize()


class IsolatedCutter:
    """Cuts clips in a child process, one row at a time. Several threads must not use it at once.

    Args:
        config: the clip settings.
        timeout_s: seconds that one row may take, decoding and encoding together.
        memory_bytes: most resident memory of the child, libraries (some 100 MB) included. The parent checks it ten
            times a second. Against sudden growth between two checks, the child's address space is limited to twice as
            much beyond that of the libraries.
    """

    def __init__(self, config: ClipConfig, *, timeout_s: float, memory_bytes: int) -> None:
        self.config, self.timeout_s, self.memory_bytes = config, timeout_s, memory_bytes
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id; None while no child runs."""
        return self._child.process.pid if self._child else None

    def cut(self, path: str | Path, *, start: float | None = None, end: float | None = None) -> CutResult:
        """`cut_clips` on a local file.

        Raises:
            UndecodableVideo: as `cut_clips`; and when the child had to be replaced, with `cause` crash, timeout or
                memory.
        """
        name = Path(path).name
        for attempt in (1, 2):
            try:
                return self._running().cut(str(path), start, end, self.timeout_s, self.memory_bytes)
            except UndecodableVideo:
                raise
            except MemoryError:
                self.close()
                limit = f"{self.memory_bytes / 2**20:.0f} MiB"
                raise UndecodableVideo(f"{name}: needs more than {limit} to decode", "memory") from None
            except TimeoutError:
                self.close()
                raise UndecodableVideo(f"{name}: not done after {self.timeout_s:.0f} s", "timeout") from None
            except (EOFError, ConnectionError):
                ending = self.close(wait_s=0.5)  # a crash reaches the socket a moment before the exit status
                # The first time may be a kill from outside, when the machine had no memory left.
                if attempt == 2:
                    raise UndecodableVideo(f"{name}: the decoder's process ended twice: {ending}", "crash") from None
            except BaseException:  # an interrupt leaves an answer half read
                self.close()
                raise
        raise AssertionError("the second attempt returns or raises")

    def _running(self) -> _Child:
        if self._child is None:
            self._child = starter.submit(_Child, self.config, self.memory_bytes).result()
        return self._child

    def close(self, wait_s: float = 0.0) -> str:
        """End the child, if one runs; the next `cut` starts another.

        Args:
            wait_s: seconds that the child may take to end by itself before it is killed.
        Returns:
            How the child ended.
        """
        child, self._child = self._child, None
        return child.end(wait_s) if child else "not running"

    def __enter__(self) -> IsolatedCutter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Child:
    """The parent's end of one child process."""

    def __init__(self, config: ClipConfig, memory_bytes: int) -> None:
        parent_end, child_end = socket.socketpair()
        parent_end.settimeout(_SILENT_S)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        with child_end:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "data_pipeline.cut.isolate", str(child_end.fileno()), str(os.getpid())],
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        self._socket = parent_end
        self._stream = parent_end.makefile("rb")
        try:
            self._send({"config": _plain(asdict(config)), "memory_bytes": memory_bytes})
            self._receive(_START_S, memory_bytes)
        except (OSError, EOFError) as error:
            raise RuntimeError(f"the clip cutter's process did not start: {self.end(0.5)}") from error

    def cut(self, path: str, start: float | None, end: float | None, timeout_s: float, memory_bytes: int) -> CutResult:
        self._send({"path": path, "start": start, "end": end})
        answer = self._receive(timeout_s, memory_bytes)
        if "memory" in answer:
            raise MemoryError
        if "error" in answer:
            raise UndecodableVideo(answer["error"], answer["cause"])
        if "failure" in answer:
            raise UndecodableVideo(f"the clip cutter failed on {Path(path).name}: {answer['failure']}", "failure")
        clips = [EncodedClip(data=self._bytes(clip.pop("bytes")), **clip) for clip in answer["clips"]]
        rejected = [Rejection(**item) for item in answer["rejected"]]
        return CutResult(clips=clips, rejected=rejected, source=answer["source"])

    def end(self, wait_s: float = 0.0) -> str:
        """Kill the child if it still runs after `wait_s`; return how it ended."""
        try:
            code = self.process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._stream.close()
        self._socket.close()
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _bytes(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) != count:  # the child was killed while it sent, and half a clip must not pass for a clip
            raise EOFError
        return data

    def _receive(self, timeout_s: float, memory_bytes: int) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while not select.select([self._socket], [], [], min(_MEMORY_CHECK_S, max(0.0, deadline - time.monotonic())))[0]:
            if time.monotonic() >= deadline:
                raise TimeoutError
            if _resident_bytes(self.process.pid) > memory_bytes:
                raise MemoryError
        line = self._stream.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        return answer


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):  # the process has just ended, which the socket shows next
        return 0


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in config.items()}


def _rebuilt(plain: dict[str, Any]) -> ClipConfig:
    defaults = ClipConfig()
    kinds = {item.name: type(getattr(defaults, item.name)) for item in fields(ClipConfig)}
    return ClipConfig(**{k: kinds[k](value) if issubclass(kinds[k], Enum) else value for k, value in plain.items()})


def _serve(connection: socket.socket) -> None:
    """What the child does: it answers each request, until the parent closes the connection."""
    stream: BinaryIO = connection.makefile("rb")
    settings = json.loads(stream.readline())
    config = _rebuilt(settings["config"])
    _limit_memory(2 * settings["memory_bytes"])
    connection.sendall(b"{}\n")
    while line := stream.readline():
        request = json.loads(line)
        blobs: list[bytes] = []
        try:
            result = cut_clips(request["path"], start=request["start"], end=request["end"], config=config)
            clips = [{k: v for k, v in vars(clip).items() if k != "data"} for clip in result.clips]
            blobs = [clip.data for clip in result.clips]
            answer: dict[str, Any] = {
                "clips": [clip | {"bytes": len(blob)} for clip, blob in zip(clips, blobs, strict=True)],
                "rejected": [vars(item) for item in result.rejected],
                "source": result.source,
            }
        except UndecodableVideo as error:
            answer = {"error": str(error), "cause": error.cause}
        except MemoryError:
            answer = {"memory": True}
        except Exception as error:  # noqa: BLE001 - reported to the parent, which raises it
            answer = {"failure": f"{type(error).__name__}: {error}"}
        connection.sendall(json.dumps(answer).encode() + b"\n")
        for blob in blobs:
            connection.sendall(blob)


def _limit_memory(extra: int) -> None:
    """Limit the address space to what is in use now and `extra` bytes more."""
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _main() -> None:
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    if not end_with_parent(parent):
        return
    with socket.socket(fileno=descriptor) as connection:
        try:
            _serve(connection)
        except ConnectionError:
            return


if __name__ == "__main__":
    _main()

"""`cut_clips` in a child process: a decoder that crashes, hangs or takes too much memory costs one row, not the worker.

The child process serves one row after another and is replaced after `_ROWS` of them, and after a crash, a timeout or a
lack of memory. A row counts as the cause of a crash only when the child crashes on it twice, and as the cause of a lack
of memory only when a new child lacks it, too: what the rows before have left in the heap says nothing about a row.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import Any

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.result import CutResult, EncodedClip, Rejection
from data_pipeline.cut.video import UndecodableVideo
from data_pipeline.outside.child import PAGE, Child, Connection, OneChild, Program, run_child

_MODULE = "data_pipeline.cut.isolate"
_ROWS = 1024
"""Rows that one child serves. Its memory grows with every file of some kinds, because the heap is fragmented."""


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
        self._one = OneChild(self._program, _ROWS)

    @property
    def pid(self) -> int | None:
        """The child's process id; None while no child runs."""
        return self._one.pid

    def cut(self, path: str | Path, *, start: float | None = None, end: float | None = None) -> CutResult:
        """`cut_clips` on a local file.

        Raises:
            UndecodableVideo: as `cut_clips`; and when the child had to be replaced, with `cause` crash, timeout or
                memory.
        """
        name = Path(path).name
        crashes = 0
        while True:
            try:
                request = {"path": str(path), "start": start, "end": end}
                return _answer(self._one.running(), request, self.timeout_s, self.memory_bytes)
            except UndecodableVideo:
                raise
            except MemoryError:
                used = self._one.served > 1
                self.close()
                if used:
                    continue
                limit = f"{self.memory_bytes / 2**20:.0f} MiB"
                raise UndecodableVideo(f"{name}: needs more than {limit} to decode", "memory") from None
            except TimeoutError:
                self.close()
                raise UndecodableVideo(f"{name}: not done after {self.timeout_s:.0f} s", "timeout") from None
            except (EOFError, ConnectionError):
                ending = self.close(wait_s=0.5)  # a crash reaches the socket a moment before the exit status
                crashes += 1
                # The first time may be a kill from outside, when the machine had no memory left.
                if crashes == 2:
                    raise UndecodableVideo(f"{name}: the decoder's process ended twice: {ending}", "crash") from None
            except BaseException:  # an interrupt leaves an answer half read
                self.close()
                raise

    def _program(self) -> Program:
        settings = {"config": _plain(asdict(self.config)), "memory_bytes": self.memory_bytes}
        return Program(
            module=_MODULE,
            named="the decoder's process",
            settings=settings,
            environment={"OMP_NUM_THREADS": "1"},
            memory_bytes=self.memory_bytes,
        )

    def close(self, wait_s: float = 0.0) -> str:
        """End the child as `OneChild.close` does; the next `cut` starts another."""
        return self._one.close(wait_s)

    def __enter__(self) -> IsolatedCutter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(child: Child, request: dict[str, Any], timeout_s: float, memory_bytes: int) -> CutResult:
    child.send(request)
    answer = child.receive(timeout_s, memory_bytes)
    if "memory" in answer:
        raise MemoryError
    if "error" in answer:
        raise UndecodableVideo(answer["error"], answer["cause"])
    if "failure" in answer:
        name = Path(request["path"]).name
        raise UndecodableVideo(f"the clip cutter failed on {name}: {answer['failure']}", "failure")
    clips = []
    for clip in answer["clips"]:
        data = bytearray(clip.pop("bytes"))
        child.fill(memoryview(data))
        clips.append(EncodedClip(data=bytes(data), **clip))
    rejected = [Rejection(**item) for item in answer["rejected"]]
    return CutResult(clips=clips, rejected=rejected, source=answer["source"])


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value.value if isinstance(value, Enum) else value for name, value in config.items()}


def _rebuilt(plain: dict[str, Any]) -> ClipConfig:
    defaults = ClipConfig()
    kinds = {item.name: type(getattr(defaults, item.name)) for item in fields(ClipConfig)}
    return ClipConfig(**{k: kinds[k](value) if issubclass(kinds[k], Enum) else value for k, value in plain.items()})


def _serve(connection: Connection) -> None:
    """What the child does: it answers each request, until the parent closes the connection."""
    config = _rebuilt(connection.settings["config"])
    _limit_memory(2 * connection.settings["memory_bytes"])
    connection.send({})
    while request := connection.receive():
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
        connection.send(answer, *blobs)


def _limit_memory(extra: int) -> None:
    """Limit the address space to what is in use now and `extra` bytes more, or less where less was allowed before."""
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    allowed = sys.maxsize if allowed == resource.RLIM_INFINITY else allowed
    limit = min(allowed, int(Path("/proc/self/statm").read_text().split()[0]) * PAGE + extra)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    run_child(_serve)

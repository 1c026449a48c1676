"""TorchScript networks of others in a process of their own, because such a network may compute or allocate for ever.

One process serves all such networks of this one. Each opening and each call has a time limit, after which the process
is killed, and its memory is limited by the kernel. What a network prints goes nowhere.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.outside.child import OneChild, Program
from trainer.engine.free_memory import available, memory_groups

_START_S = 120.0
"""Seconds that a new process may take to import torch."""
_MOST_BYTES = 2**28
"""Of an answer; the process sends no more numbers than these hold in fp32 (`_MOST_NUMBERS` there)."""
_SHARE = 0.8
"""Of the memory that is free when the process starts, which it may take."""


@dataclass(frozen=True)
class Limits:
    """What one network may take, in seconds of wall time. The I3D of FVD takes one second a clip on one processor core.

    Attributes:
        open_s: to be opened.
        call_s: for a call, and `clip_s` more for each of its clips.
    """

    open_s: float = 300.0
    call_s: float = 300.0
    clip_s: float = 60.0


class OverLimit(ValueError):
    """A network was ended, because it took too long, or ended its process; the text names it and has the remedy."""


class NoTensor(ValueError):
    """A network gave something else than a tensor of numbers; the text says what."""


class ScriptNetwork:
    """A network in the process for networks of others.

    Args:
        file: as `torch.jit.save` writes it.
        device: where the network computes.
        named: the option and the file, for messages.
        limits: of time.
    Attributes:
        arguments: the names of the arguments of its `forward`.
    Raises:
        OverLimit: it could not be opened in time or in memory.
        ValueError: it holds code that does more than compute.
        RuntimeError: torch cannot open it.
        OSError: the file cannot be read.
    """

    def __init__(self, file: Path, device: torch.device, named: str, limits: Limits | None = None) -> None:
        self._file, self._device, self._named, self._limits = file.absolute(), device, named, limits or Limits()
        self._server, self.arguments = _server(os.getpid()), frozenset[str]()
        self._start, self._number = -1, -1
        self._open()

    def _open(self) -> None:
        request = {"file": str(self._file), "device": str(self._device), "threads": torch.get_num_threads()}
        answer, _ = self._server.ask(request, b"", self._limits.open_s, f"{self._named} could not be opened")
        self._start, self._number = self._server.starts, answer["number"]
        self.arguments = frozenset(answer["arguments"])

    def __call__(self, video: Tensor, **flags: bool) -> Tensor:
        """What the network gives, on the CPU in fp32, [B, d].

        Args:
            video: [B, ...], any device.
            flags: further arguments.
        Raises:
            OverLimit: it gave no answer in time, or ended its process.
            NoTensor: it gave something else, or a tensor of other dimensions.
            RuntimeError: what the network raised, or want of memory.
            NotStarted: the process was ended, and another one does not start.
        """
        if self._start != self._server.running():  # this network or another one has ended the process
            self._open()
        array = np.ascontiguousarray(video.detach().float().cpu().numpy())
        request = {"call": self._number, "shape": list(array.shape), "flags": flags}
        limit = self._limits.call_s + self._limits.clip_s * len(array)
        what = f"{self._named} gave no answer for {len(array)} clips"
        answer, data = self._server.ask(request, array.tobytes(), limit, what)
        if "given" in answer:
            raise NoTensor(answer["given"])
        return torch.from_numpy(np.frombuffer(data, np.float32).reshape(answer["shape"]).copy())


@cache
def _server(process: int) -> _Server:
    """The one of this process: a fork of it has none."""
    return _Server()


class _Server:
    """The process that serves this one, and the order of requests from several threads."""

    def __init__(self) -> None:
        self._one = OneChild(_program)
        self._lock = threading.Lock()

    @property
    def starts(self) -> int:
        """How many processes there have been, since one that was killed is followed by another."""
        return self._one.starts

    def running(self) -> int:
        """Start a process where the last one was ended; then as `starts`. Raises: NotStarted."""
        with self._lock:
            self._one.running()
            return self._one.starts

    def ask(self, request: dict[str, Any], data: bytes, limit_s: float, failed: str) -> tuple[dict[str, Any], bytes]:
        """The answer and its numbers.

        Args:
            request: one line.
            data: the numbers that follow it.
            limit_s: how long the answer may take.
            failed: begins the message where none comes.
        Raises: as `ScriptNetwork`.
        """
        with self._lock:
            try:
                child = self._one.running()
                child.send(request | {"bytes": len(data)}, data)
                answer = child.receive(limit_s)
                body = child.read(answer["bytes"], _MOST_BYTES)
            except TimeoutError:
                self._one.close()
                raise OverLimit(
                    f"{failed} within {limit_s:.0f} s, and was ended; name another network, or use a faster device"
                ) from None
            except (EOFError, ConnectionError) as error:
                ending = self._one.close(0.5)
                raise OverLimit(f"{failed}, because its process ended ({ending}); name another network") from error
            except BaseException:  # an interrupt leaves an answer half read
                self._one.close()
                raise
        if "refused" in answer:
            raise ValueError(answer["refused"])
        if "system" in answer:
            raise OSError(*answer["system"])
        if "device_memory" in answer:
            raise torch.OutOfMemoryError(answer["device_memory"])
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer, bytes(body)


def _program() -> Program:
    return Program(
        module="trainer.evaluation.script_child",
        named="the process for TorchScript networks",
        settings={"memory_bytes": int(_SHARE * _free_bytes())},
        quiet=True,
        start_s=_START_S,
    )


def _free_bytes() -> int:
    return min([available(), *(left for _, left in memory_groups())])

"""How long a network's forward passes take on this rank's own device.

No rank waits for another one in a forward pass, up to ZeRO 2. So these seconds show which device is slow, while the
time of a whole step is the same on every rank. At ZeRO 3 a forward pass gathers weights, and also waits for the others.
"""

from __future__ import annotations

import time
from types import TracebackType

import torch


class ForwardClock:
    """Context around each forward pass. On a GPU it leaves two marks in the stream, and the host waits for nothing."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._seconds, self._begin = 0.0, 0.0
        self._marks: list[torch.cuda.Event] = []

    def _mark(self) -> None:
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self._marks.append(mark)

    def __enter__(self) -> None:
        if self._on_gpu:
            self._mark()
        else:
            self._begin = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on_gpu:
            self._mark()
        else:
            self._seconds += time.perf_counter() - self._begin

    def take(self) -> float:
        """Seconds since the last call of this method. The host waits until the device has done the last pass."""
        marks, self._marks = self._marks, []
        if marks:
            marks[-1].synchronize()
        pairs = zip(marks[::2], marks[1::2], strict=True)
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in pairs) / 1000
        self._seconds = 0.0
        return seconds

"""The time of forward passes: by a clock that the test turns on the processor, by marks in the stream on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.engine import forward_clock
from trainer.engine.engine import Engine
from trainer.engine.forward_clock import ForwardClock


def test_on_the_processor_the_passes_of_an_engine_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(forward_clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    engine = object.__new__(Engine)
    engine.forward_clock = ForwardClock(on_gpu=False)

    def forward(seconds: float) -> float:
        now[0] += seconds
        return seconds

    engine.engine = forward
    for seconds in (0.25, 0.5):
        assert engine(seconds) == seconds
        now[0] += 7  # the rest of the step
    assert engine.forward_clock.take() == 0.75
    assert engine.forward_clock.take() == 0.0


def test_on_a_gpu_the_host_waits_only_where_the_time_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that stand for those of CUDA: the device's clock is read where they lie in the stream."""
    device_clock, waits = [0.0], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = device_clock[0]

        def synchronize(self) -> None:
            waits.append(self.at)

        def elapsed_time(self, end: Any) -> float:
            return 1000 * (end.at - self.at)  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = ForwardClock(on_gpu=True)
    for seconds in (0.25, 0.5):
        with clock:
            device_clock[0] += seconds
        device_clock[0] += 3
    assert waits == []
    assert clock.take() == 0.75
    assert waits == [3.75]
    assert clock.take() == 0.0

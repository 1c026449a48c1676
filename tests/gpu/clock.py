"""Seconds of what runs on the device, and memory that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def settle(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(action: Callable[[], object], device: str, *, rounds: int = 7, each: int = 5) -> float:
    """Seconds of one action, its queue full: the median over rounds of several actions each."""
    action()
    taken = []
    for _ in range(rounds):
        settle(device)
        begin = time.perf_counter()
        for _ in range(each):
            action()
        settle(device)
        taken.append((time.perf_counter() - begin) / each)
    return median(taken)


def peak_bytes(action: Callable[[], object]) -> int:
    """Most bytes of a GPU that are allocated during an action, beside what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before

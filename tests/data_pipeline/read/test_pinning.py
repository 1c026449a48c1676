"""Batches that are handed over in page-locked memory, with a GPU that is made believe: torch's own thread copies them.

`Tensor.pin_memory` makes a plain copy here and notes it. All else is as on a GPU: torch's thread takes the results from
the workers and pins them, while the main thread trains.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from data_pipeline.read import worker_pool
from data_pipeline.read.loader import ClipLoader
from data_pipeline.read.worker_death import WorkerDied
from data_pipeline.read.worker_pool import WorkerPool
from tests.data_pipeline.read.loading import GLOBAL_BATCH, config, fingerprint
from tests.data_pipeline.read.test_worker_pool import alive, wait_for


@dataclass
class Pins:
    """What was pinned: addresses of the copies, and the threads that made them."""

    copies: list[Tensor] = field(default_factory=list)
    threads: set[threading.Thread] = field(default_factory=set)

    def has(self, tensor: Tensor) -> bool:
        return any(tensor.data_ptr() == copy.data_ptr() for copy in self.copies)


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> Pins:
    """A GPU that torch's DataLoader believes in."""
    found = Pins()
    here, set_num_threads = os.getpid(), torch.set_num_threads

    def set_in_workers(threads: int) -> None:
        """torch's thread would set the number for this process; a forked worker with OpenMP's threads would hang."""
        if os.getpid() != here:
            set_num_threads(threads)

    def pin_memory(tensor: Tensor, device: object = None) -> Tensor:
        found.copies.append(tensor.clone())
        found.threads.add(threading.current_thread())
        return found.copies[-1]

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch, "set_num_threads", set_in_workers)
    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    return found


def make_pool(
    read: Callable[[int], object],
    *,
    workers: int = 1,
    timeout_s: float = 60.0,
    while_waiting: Callable[[], None] | None = None,
) -> WorkerPool[object]:
    return WorkerPool(
        read,
        range(5),
        workers=workers,
        prefetch=1,
        timeout_s=timeout_s,
        pin_memory=True,
        on_start=lambda: None,
        while_waiting=while_waiting,
    )


def pids(pool: WorkerPool[object]) -> list[int]:
    return [process.pid for process in pool.processes if process.pid]


def ended(threads: set[threading.Thread]) -> bool:
    return not any(thread.is_alive() for thread in threads if thread is not threading.main_thread())


@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_are_those_of_a_loader_that_pins_nothing(root: Path, pins: Pins, workers: int) -> None:
    plain, pinned = ClipLoader(config(root)), ClipLoader(config(root, workers=workers), pin_memory=True)
    expected = [fingerprint(batch) for batch in islice(plain.from_position(), 5)]
    assert not pins.copies
    batches = list(islice(pinned.from_position(), 5))
    assert [fingerprint(batch) for batch in batches] == expected
    assert all(pins.has(batch.video) for batch in batches)
    assert not any(pins.has(batch.indices) for batch in batches)
    in_main = threading.main_thread() in pins.threads
    assert in_main == (workers == 0)
    assert len(pins.threads) == 1
    pinned.close()
    plain.close()
    assert ended(pins.threads)


def test_a_loader_that_pins_goes_on_after_close(root: Path, pins: Pins) -> None:
    loader = ClipLoader(config(root, workers=1), pin_memory=True)
    first = next(loader.from_position())
    loader.close()
    assert ended(pins.threads)
    again = next(loader.from_position())
    assert fingerprint(again) == fingerprint(first)
    assert again.position.consumed == GLOBAL_BATCH
    loader.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_pinned_in_order_and_end(pins: Pins, workers: int) -> None:
    pool = make_pool(lambda item: torch.full((3,), item), workers=workers)
    results = list(pool)
    assert [int(result[0]) for result in results if isinstance(result, Tensor)] == [0, 1, 2, 3, 4]
    assert all(pins.has(result) for result in results if isinstance(result, Tensor))
    pool.close()
    assert ended(pins.threads)


def test_an_error_of_read_passes_the_pinning_thread_as_it_is(pins: Pins) -> None:
    def read(item: int) -> Tensor:
        if item == 1:
            raise LookupError(f"item {item}")
        return torch.full((1,), item)

    pool = make_pool(read)
    assert int(next(pool)) == 0  # type: ignore[call-overload]
    with pytest.raises(LookupError, match="item 1"):
        next(pool)
    assert [int(result) for result in pool] == [2, 3, 4]  # type: ignore[call-overload]
    pool.close()


def test_memory_that_cannot_be_locked_is_an_error_with_its_reason(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: Tensor, device: object = None) -> Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(Tensor, "pin_memory", refuse)
    monkeypatch.setattr(worker_pool, "_END_S", 0.2)
    pool = make_pool(lambda item: torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"(?s)pin memory thread.*CUDA error: out of memory"):
        next(pool)
    pool.close()


def test_a_killed_worker_is_an_error_that_says_so(pins: Pins) -> None:
    pool = make_pool(lambda item: torch.zeros(1), workers=2)
    workers = pids(pool)

    def kill_and_go_on() -> None:
        os.kill(workers[0], signal.SIGKILL)
        list(pool)
        time.sleep(60)  # what was read ahead may have sufficed; the notice comes whatever the main thread does

    with pytest.raises(WorkerDied, match=r"(?s)a data worker died .*(killed by signal: Killed|exited unexpectedly)"):
        kill_and_go_on()
    pool.close()
    assert not alive(workers)
    assert ended(pins.threads)


def test_a_hung_worker_is_given_up_and_the_pinning_thread_ends(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_END_S", 0.2)

    def read(item: int) -> Tensor:
        if item:
            time.sleep(1000)
        return torch.zeros(1)

    pool = make_pool(read, timeout_s=2.0)
    workers = pids(pool)
    next(pool)
    with pytest.raises(RuntimeError, match=r"no batch within data\.timeout_s=2"):
        next(pool)
    pool.close()
    assert workers
    assert not alive(workers)
    assert pins.threads
    assert ended(pins.threads)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_workers_stopped_while_they_hand_over_are_killed_and_the_pinning_thread_ends(
    pins: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread then reads from a process that does not answer. It ends, with a broken connection, when that dies.

    It is held at the first result until the second one is on its way and both workers are stopped.
    """
    monkeypatch.setattr(worker_pool, "_CALL_EVERY_S", 0.05)
    reason, pin = LookupError("a reason to leave"), Tensor.pin_memory
    held, stopped = threading.Event(), threading.Event()

    def leave() -> None:
        raise reason

    def hold(tensor: Tensor) -> Tensor:
        held.set()
        assert stopped.wait(60)
        return pin(tensor)

    monkeypatch.setattr(Tensor, "pin_memory", hold)
    pool = make_pool(lambda item: torch.zeros(1), workers=2, while_waiting=leave)
    workers, on_the_way = pids(pool), pool._results._worker_result_queue  # type: ignore[attr-defined]
    assert held.wait(60)
    assert wait_for(lambda: not on_the_way.empty(), 60)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    stopped.set()
    with pytest.raises(LookupError) as caught:
        list(pool)
    assert caught.value is reason
    pool.close()
    assert len(workers) == 2
    assert not alive(workers)
    assert ended(pins.threads)

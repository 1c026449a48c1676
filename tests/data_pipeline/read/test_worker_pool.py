"""Worker processes: they end with the training process however it ends, and their own end is a clear error."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from data_pipeline.read import worker_pool
from data_pipeline.read.loader import Batch, ClipLoader, Position
from data_pipeline.read.torch_private import end_workers
from data_pipeline.read.worker_death import WorkerDied
from data_pipeline.read.worker_pool import WorkerPool
from tests.data_pipeline.read.loading import GLOBAL_BATCH, config


def alive(pids: list[int]) -> list[int]:
    """Those that run; a zombie is one that ended."""
    running = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it may end between any two looks
            if "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                running.append(pid)
    return running


def children() -> list[int]:
    return [int(p) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def running(root: Path) -> Iterator[tuple[ClipLoader, Iterator[Batch], list[int]]]:
    before = set(children())
    loader = ClipLoader(config(root, workers=2))
    batches = loader.from_position()
    next(batches)
    yield loader, batches, [p for p in children() if p not in before]
    loader.close()


def test_close_leaves_no_process_and_the_loader_usable(running: tuple) -> None:
    loader, _, workers = running
    assert len(alive(workers)) == 2
    loader.close()
    assert not alive(workers)
    assert next(loader.from_position()).position == Position(0, 12)


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 1), (2, 3)])
def test_what_is_read_ahead_is_bounded(
    root: Path, workers: int, prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read notes how many results had been taken by then: `workers * prefetch` fewer at most.

    Before each result is taken, as much has been read as may be; a worker without that bound would be at the next one.
    """
    context = multiprocessing.get_context("fork")
    taken, reads, furthest = (context.Value("l", 0) for _ in range(3))
    loader = ClipLoader(config(root, workers=workers, prefetch=prefetch))
    read_batch = loader.read_batch

    def noted(begin: int) -> Batch:
        with furthest.get_lock():
            furthest.value = max(furthest.value, begin // GLOBAL_BATCH + 1 - taken.value)
            reads.value += 1
        return read_batch(begin)

    monkeypatch.setattr(loader, "read_batch", noted)
    batches = loader.from_position()
    for number in range(12):
        if number:
            assert wait_for(lambda n=number: reads.value >= n + workers * prefetch, 60)  # type: ignore[misc]
        with furthest.get_lock():
            taken.value += 1  # before it is taken, which asks for the next
        next(batches)
    loader.close()
    assert furthest.value == workers * prefetch


def test_a_killed_worker_is_an_error_that_says_so(running: tuple) -> None:
    loader, batches, workers = running

    def kill_and_go_on() -> None:
        os.kill(workers[0], signal.SIGKILL)
        list(islice(batches, 50))

    with pytest.raises(WorkerDied, match=r"(?s)a data worker died .*(killed by signal: Killed|exited unexpectedly)"):
        kill_and_go_on()
    loader.close()
    assert not alive(workers)


def test_a_worker_killed_while_nobody_asks_for_a_result_is_the_same_error() -> None:
    """torch raises in the main thread at once, whatever that does: most of the time it trains."""
    pool = make_pool(lambda item: item)

    def kill_and_train() -> None:
        pool.processes[0].kill()
        time.sleep(60)

    with pytest.raises(WorkerDied, match=r"a data worker died .*killed by signal: Killed.*lower data\.workers"):
        kill_and_train()
    pool.close()


def test_a_connection_broken_by_a_dying_worker_is_the_same_error() -> None:
    """The moment between the broken connection and the death, in which torch raises the connection's own error."""
    pool = make_pool(lambda item: item)
    worker = pool.processes[0]

    def broken() -> Iterator[int]:
        worker.kill()
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        yield 0

    results, pool._results = pool._results, broken()  # type: ignore[assignment]
    with pytest.raises(WorkerDied, match=r"a data worker died .*(Killed|reset by peer).*lower data\.workers"):
        next(pool)
    pool._results = results
    pool.close()


def test_a_connection_error_of_the_read_stays_what_it_is() -> None:
    def fail(item: int) -> int:
        raise ConnectionResetError(errno.ECONNRESET, "the store hung up")

    pool = make_pool(fail)
    with pytest.raises(ConnectionResetError, match="the store hung up"):
        next(pool)
    pool.close()


def test_workers_leave_stop_signals_to_the_training_process(running: tuple) -> None:
    _, batches, workers = running
    for pid in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(pid, number)
    assert all(next(batches) for _ in range(6))
    assert len(alive(workers)) == 2


def test_a_stop_signal_in_a_workers_first_moments_is_not_for_it_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a line of ours has run in it: torch's worker sets its number of threads first."""

    def told_to_stop(threads: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(torch, "set_num_threads", told_to_stop)
    pool = make_pool(lambda item: item)
    assert list(pool) == [0, 1, 2, 3, 4]
    pool.close()


_TRAINING = """
import sys
from pathlib import Path
from tests.data_pipeline.read.test_worker_pool import ClipLoader, children, config
for batch in ClipLoader(config(Path(sys.argv[1]), workers=2)).from_position():
    print(*children(), flush=True)
    if sys.stdin.readline() == "fail":
        raise ZeroDivisionError
"""


@pytest.mark.parametrize("ways", [("kill",), pytest.param(("terminate", "raise"), marks=pytest.mark.slow)])
def test_workers_end_with_the_training_process_however_it_ends(root: Path, ways: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", _TRAINING, str(root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in ways]  # type: ignore[call-overload]
    workers = [int(pid) for p in processes for pid in p.stdout.readline().split()]
    assert len(alive(workers)) == 2 * len(ways)
    for process, way in zip(processes, ways, strict=True):
        if way == "raise":
            _, errors = process.communicate("fail", timeout=90)
            assert "ZeroDivisionError" in errors
        else:
            getattr(process, way)()
            process.wait(60)
    assert wait_for(lambda: not alive(workers), 60)


def make_pool(
    read: Callable[[int], int],
    *,
    workers: int = 1,
    timeout_s: float = 60.0,
    while_waiting: Callable[[], None] | None = None,
) -> WorkerPool[int]:
    return WorkerPool(
        read,
        range(5),
        workers=workers,
        prefetch=1,
        timeout_s=timeout_s,
        pin_memory=False,
        on_start=lambda: None,
        while_waiting=while_waiting,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_end(workers: int) -> None:
    pool = make_pool(lambda item: item * item, workers=workers)
    assert list(pool) == [0, 1, 4, 9, 16]
    pool.close()
    pool.close()


def test_a_hung_worker_is_an_error_naming_the_key_and_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_END_S", 0.1)
    pool = make_pool(lambda item: time.sleep(1000) or item, timeout_s=0.5)  # type: ignore[func-returns-value]
    workers = [process.pid for process in pool.processes]
    with pytest.raises(RuntimeError, match=r"no batch within data\.timeout_s=0\.5"):
        next(pool)
    pool.close()
    assert workers
    assert not alive([pid for pid in workers if pid])


def test_a_function_is_called_while_a_result_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_CALL_EVERY_S", 0.05)
    called = multiprocessing.get_context("fork").Event()
    pool = make_pool(lambda item: called.wait(60) and item, while_waiting=called.set)
    assert list(pool) == [0, 1, 2, 3, 4]
    assert called.is_set()
    pool.close()


@pytest.mark.parametrize("kind", [LookupError, OSError, RuntimeError])
@pytest.mark.parametrize("stopped", [False, True])
def test_an_error_of_that_function_ends_the_wait_and_hung_workers_are_killed(
    monkeypatch: pytest.MonkeyPatch, stopped: bool, kind: type[Exception]
) -> None:
    """Workers that hang in their work, and workers that are stopped with results half handed over."""
    monkeypatch.setattr(worker_pool, "_CALL_EVERY_S", 0.05)
    reason = kind("a reason to leave")

    def leave() -> None:
        raise reason

    def read(item: int) -> torch.Tensor:
        if not stopped:
            time.sleep(1000)
        return torch.zeros(1)

    pool = make_pool(read, workers=2, while_waiting=leave)  # type: ignore[arg-type]
    workers = [process.pid for process in pool.processes if process.pid]
    if stopped:
        results = pool._results._data_queue  # type: ignore[attr-defined]
        assert wait_for(lambda: not results.empty(), 60)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
    with pytest.raises(kind) as caught:
        next(pool)
    assert caught.value is reason
    pool.close()
    assert len(workers) == 2
    assert not alive(workers)


class Unportable(Exception):
    """An error that pickle cannot make again from its message."""

    def __init__(self, number: int, name: str) -> None:
        super().__init__(f"{name} {number}")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_read_keeps_its_type_and_message(workers: int) -> None:
    def fail(item: int) -> int:
        raise LookupError(f"item {item}")

    pool = make_pool(fail, workers=workers)
    for item in range(5):  # an error is a result like any other: the next one can be asked for
        with pytest.raises(LookupError, match=f"item {item}") as caught:
            next(pool)
        shown = "".join(traceback.format_exception(caught.value))
        assert re.search(rf"(?s)in fail\n.*LookupError: item {item}", shown), "the place where it was raised"
        assert ("In a data worker:" in shown) == (workers > 0)
    pool.close()


def test_an_error_that_cannot_be_handed_over_comes_as_its_text() -> None:
    def fail(item: int) -> int:
        raise Unportable(item, "item")

    pool = make_pool(fail)
    with pytest.raises(RuntimeError, match="Unportable: item 0"):
        next(pool)
    pool.close()


def test_torch_still_ends_the_workers_of_an_iterator_where_this_is_asked_for() -> None:
    """`end_workers` is the private part of torch that the pool uses: it leaves no process, while the iterator lives."""
    before = set(multiprocessing.active_children())
    results = iter(DataLoader(range(4), batch_size=None, num_workers=2))  # type: ignore[arg-type]
    next(results)
    workers = [process.pid for process in multiprocessing.active_children() if process not in before]
    end_workers(results)
    assert len(workers) == 2
    assert not alive([pid for pid in workers if pid])

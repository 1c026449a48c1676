"""Runs a function over a sequence in worker processes: the results come in order, a bounded number of them ahead.

The workers are processes and not threads. Decoding releases Python's lock only in part, and the training process needs
the lock for itself (figures in docs/performance.md). torch's DataLoader supplies the shared memory, the bounded queues
and the notice of a dead worker.

A signal that asks for a stop often goes to the whole process group. The workers ignore it, because the training process
has to save first and ends the workers then. When the training process is dead, the workers end by themselves.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import multiprocessing.connection
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_pipeline.read.shared_memory import HandOverFailed
from data_pipeline.read.torch_private import end_workers
from data_pipeline.read.worker_death import WorkerDied, deaths_expected, explain_deaths

T = TypeVar("T")

_END_S = 5.0  # a worker that has not ended so long after it was asked to hangs, and is killed
_ABANDONED_END_S = 0.5  # the same when the run has a reason to leave, and needs no result of the workers any more
_CALL_EVERY_S = 1.0  # time between two calls of `while_waiting`
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Failure:
    """What a worker hands over in place of a result when `read` raised an error.

    The error keeps its type and its message on the way, and the worker's traceback becomes a note of it.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> tuple[type[Failure], tuple[Exception]]:
        """How the failure goes to the training process: an error that pickle cannot carry travels as its text."""
        try:
            carried = pickle.loads(pickle.dumps(self.error))
        except Exception:  # noqa: BLE001  (pickle calls code of the error's class, which may raise anything)
            carried = None
        if type(carried) is not type(self.error) or str(carried) != str(self.error):
            carried = RuntimeError(f"{type(self.error).__name__}: {self.error}")
        carried.add_note("In a data worker:\n" + "".join(traceback.format_exception(self.error)).rstrip())
        return Failure, (carried,)


class _Packed:
    """A result on its way out of a worker.

    The worker packs the result itself, which puts its tensors into shared memory. torch's queue would do so in a thread
    of its own, where an error is printed and the result is lost, so that nobody would ever get it.
    """

    def __init__(self, result: Any) -> None:
        self._data = bytes(ForkingPickler.dumps(result))

    def unpack(self) -> Any:
        """The result, in the training process."""
        return pickle.loads(self._data)

    def pin_memory(self) -> Any:
        """The result in page-locked memory; torch's thread for that calls it, and hands an error on."""
        result = self.unpack()
        return result.pin_memory() if hasattr(result, "pin_memory") else result


class _Items(Dataset[T | Failure | _Packed], Generic[T]):
    """A function in the shape that DataLoader asks for: a dataset that is read by index."""

    def __init__(self, read: Callable[[int], T]) -> None:
        self._read = read

    def __getitem__(self, item: int) -> T | Failure | _Packed:
        try:
            result = self._read(item)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is raised again where the result is asked for)
            return Failure(error)
        if get_worker_info() is None:  # this is the training process
            return result
        try:
            return _Packed(result)
        except Exception as error:  # noqa: BLE001  (of the system, of torch, or of pickle: each ends the run)
            return Failure(HandOverFailed.because(error))


class WorkerPool(Generic[T]):
    """`read(item)` for each item, in the order of the items.

    Args:
        read: called in the workers. They are forked from this process, so they have all that `read` refers to.
        items: may be endless.
        workers: number of processes; with 0, this process calls `read` when a result is asked for.
        prefetch: results that each worker may be ahead.
        timeout_s: longest wait for one result in seconds; 0 waits for ever.
        pin_memory: copy results to page-locked memory, by their method `pin_memory()`.
        on_start: each worker calls it once, before anything else.
        while_waiting: called about once a second, in a handler of SIGALRM, while the main thread waits for a result;
            never without workers. An error that it raises ends the wait; `close` then kills hanging workers early.
    """

    def __init__(
        self,
        read: Callable[[int], T],
        items: range,
        *,
        workers: int,
        prefetch: int,
        timeout_s: float,
        pin_memory: bool,
        on_start: Callable[[], None],
        while_waiting: Callable[[], None] | None = None,
    ) -> None:
        self._timeout_s, self._while_waiting, self._end_s = timeout_s, while_waiting if workers else None, _END_S
        self._raised_while_waiting: BaseException | None = None
        before = set(multiprocessing.active_children())
        loader: DataLoader[T | Failure | _Packed] = DataLoader(
            _Items(read),
            batch_size=None,
            sampler=items,
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            timeout=timeout_s if workers else 0,
            pin_memory=pin_memory,
            collate_fn=_unchanged,
            worker_init_fn=_Start(on_start),
            multiprocessing_context="fork" if workers else None,
            generator=torch.Generator(),  # DataLoader draws a seed, which must not shift the training's own draws
        )
        with _blocked(_STOP_SIGNALS):  # a worker is forked with these signals blocked, until it ignores them
            self._results: Iterator[T | Failure | _Packed] = iter(loader)
        if workers:
            explain_deaths()
        self.processes = [process for process in multiprocessing.active_children() if process not in before]
        # Python's own exit handler would wait for ever, because the workers ignore its SIGTERM. This one runs before.
        atexit.register(self._end)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next result.

        Raises:
            WorkerDied: a worker died.
            HandOverFailed: a worker could not hand a result over, for want of shared memory for instance.
            RuntimeError: no result came within `timeout_s`.
            Exception: whatever `read` raised, with the worker's traceback as a note; or what `while_waiting` raised.
        """
        began = time.monotonic()
        try:
            with self._calling_while_waiting():
                result = next(self._results)
                if isinstance(result, _Packed):
                    result = cast(T, result.unpack())
        except (StopIteration, WorkerDied):
            raise
        except Exception as error:
            # An error of `read` is a `Failure`, so this one is about the processes, or it comes from `while_waiting`.
            if error is self._raised_while_waiting:
                raise
            late = bool(self.processes) and 0 < self._timeout_s <= time.monotonic() - began
            # A worker that dies while it hands over a tensor breaks the connection shortly before it counts as dead.
            if dead := self._wait_for_the_dead(0.0 if late else _END_S):
                numbers = ", ".join(str(process.pid) for process in dead)
                raise WorkerDied(f"process {numbers} exited unexpectedly: {error}") from error
            if late:
                raise RuntimeError(
                    f"no batch within data.timeout_s={self._timeout_s:g} seconds: the store or a decoder hangs; raise "
                    "data.timeout_s if batches really take that long"
                ) from error
            raise
        if isinstance(result, Failure):
            raise result.error
        return result

    @contextmanager
    def _calling_while_waiting(self) -> Iterator[None]:
        """Inside the block, a timer calls `while_waiting` about once a second.

        The timer is a signal, because a worker that is stopped in the middle of handing over a result blocks the
        training process in a read, and that read does not return after any timeout that torch could be given.
        """
        if self._while_waiting is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        while_waiting, over = self._while_waiting, False

        def handle(number: int, frame: FrameType | None) -> None:
            if over:
                return
            try:
                while_waiting()
            except BaseException as error:
                self._raised_while_waiting = error
                self._end_s = min(_ABANDONED_END_S, self._end_s)
                raise
            signal.setitimer(signal.ITIMER_REAL, _CALL_EVERY_S)

        handler_before = signal.signal(signal.SIGALRM, handle)
        timer_before = signal.setitimer(signal.ITIMER_REAL, _CALL_EVERY_S)  # a timer of other code is put off
        try:
            yield
        finally:
            over = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler_before)
            signal.setitimer(signal.ITIMER_REAL, *timer_before)

    def _wait_for_the_dead(self, seconds: float) -> list[BaseProcess]:
        """The workers that have ended, or that end within so many seconds. After this, SIGCHLD reports them no more."""
        sentinels: dict[Any, BaseProcess] = {process.sentinel: process for process in self.processes}
        dead = [sentinels[sentinel] for sentinel in multiprocessing.connection.wait(list(sentinels), seconds)]
        for process in dead:
            process.join()
        return dead

    def close(self) -> None:
        """End the workers and wait for them."""
        atexit.unregister(self._end)
        if not self.processes:  # there is nothing to end, and while Python exits no thread could be started
            return
        # torch waits for one worker after the other, so a timer kills those that hang all at the same time.
        hung = threading.Timer(self._end_s, self._kill)
        hung.start()
        try:
            self._end()
        finally:
            hung.cancel()

    def _end(self) -> None:
        if not self.processes:
            return
        try:
            with deaths_expected():
                end_workers(self._results)
        finally:  # also when the handler of a signal raises an error inside the block
            for process in self.processes:
                process.join(_END_S)
                if process.is_alive():
                    process.kill()
                    process.join()
            self.processes = []

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()


class _Start:
    """What each worker does first."""

    def __init__(self, on_start: Callable[[], None]) -> None:
        self._on_start = on_start

    def __call__(self, worker: int) -> None:
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        gc.enable()  # a training switches the collector off in its own process
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)  # a signal that came while blocked is ignored, too
        self._on_start()


@contextmanager
def _blocked(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Inside the block these signals wait for this thread; a process that is forked there begins with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unchanged(item: T) -> T:
    return item

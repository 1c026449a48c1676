"""Run a function over a sequence in worker processes, results in order, a bounded number ahead.

Processes, not threads: decoding releases Python's lock only in part, and the training process needs it for itself
(figures in docs/performance.md). torch's DataLoader supplies shared memory, bounded queues and notice of a dead worker.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from data_pipeline.store.base import StoreError

T = TypeVar("T")

_END_S = 5.0  # a worker that has not ended this long after being asked is hung and is killed
_LEFT_S = 0.5  # the same where nobody waits for its result any more
_LOOK_S = 1.0  # who waits for a result hears this often that there is none yet
# A stop sent to the whole process group is for the training process, which saves first and then ends the workers; and
# they end by themselves when it is gone.
_NOT_FOR_WORKERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class WorkerDied(RuntimeError):
    """A data worker is gone. In the main thread it can come at any moment: torch notices in a handler of SIGCHLD."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"a data worker died ({what}). Killed by signal 9 is most often the machine running out of memory: lower "
            "data.workers or data.prefetch, or give the job more memory"
        )


class _Items(Dataset[T], Generic[T]):
    """A function as the map-style dataset that DataLoader wants."""

    def __init__(self, read: Callable[[int], T]) -> None:
        self._read = read

    def __getitem__(self, item: int) -> T:
        return self._read(item)


class WorkerPool(Generic[T]):
    """`read(item)` for each item, in the order of the items.

    Args:
        read: called in the workers, which are forked here and so see everything `read` refers to.
        items: may be endless.
        workers: processes; 0 calls `read` in this process when the result is wanted.
        prefetch: results each worker may be ahead.
        timeout_s: seconds to wait for one result; 0 for ever.
        pin_memory: copy results to page-locked memory through their `pin_memory()`.
        on_start: called once in each worker before anything else.
        while_waiting: called about once a second while a result is waited for in the main thread, in a handler of
            SIGALRM; not without workers. What it raises ends the wait, and the workers with little patience.
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
        self._timeout_s, self._while_waiting, self._patience_s = timeout_s, while_waiting if workers else None, _END_S
        before = set(multiprocessing.active_children())
        loader: DataLoader[T] = DataLoader(
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
            generator=torch.Generator(),  # it draws a seed, which must not shift the training's own draws
        )
        with _held_back(_NOT_FOR_WORKERS):  # until a worker ignores them
            self._results = iter(loader)
        if workers:
            _explain_deaths()
        self.processes = [p for p in multiprocessing.active_children() if p not in before]
        # Python's own exit handler would wait for ever for workers that ignore its SIGTERM; this one runs before it.
        atexit.register(self._end)

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next result.

        Raises:
            WorkerDied: a worker died.
            StoreError: `read` raised it; with its own message.
            RuntimeError: a worker did not answer in time.
            Exception: whatever else `read` raised, with the worker's traceback in its message; or what `while_waiting`
                raised.
        """
        try:
            with self._hearing():
                return next(self._results)
        except StoreError as error:
            # torch puts the worker's traceback before the message, which is for a person who looks after the storage
            name = f"{StoreError.__module__}.{StoreError.__qualname__}: "
            raise StoreError(str(error).rpartition(name)[2].rstrip()) from error
        except (OSError, EOFError) as error:
            # A worker that dies while it hands over a tensor breaks the connection shortly before it counts as dead,
            # and torch then raises the connection's error.
            if "in DataLoader worker process" not in str(error) and (pids := self._wait_for_the_dead()):
                raise WorkerDied(f"process {pids} exited unexpectedly: {error}") from error
            raise
        except WorkerDied:
            raise
        except RuntimeError as error:
            if "DataLoader worker (pid" in str(error):
                raise WorkerDied(str(error).strip()) from error
            if "DataLoader timed out" in str(error):
                raise RuntimeError(
                    f"no batch within data.timeout_s={self._timeout_s:g} seconds: the store or a decoder hangs; raise "
                    "data.timeout_s if batches really take that long"
                ) from error
            raise

    @contextmanager
    def _hearing(self) -> Iterator[None]:
        """Inside, `while_waiting` is called once in a while.

        By a signal, because a worker that stands still while it hands over a result holds up who takes it, for longer
        than any time that torch could be given.
        """
        if self._while_waiting is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        while_waiting, over = self._while_waiting, False

        def hear(number: int, frame: FrameType | None) -> None:
            if not over:
                try:
                    while_waiting()
                except BaseException:
                    self._patience_s = min(_LEFT_S, self._patience_s)
                    raise
                signal.setitimer(signal.ITIMER_REAL, _LOOK_S)

        before = signal.signal(signal.SIGALRM, hear)
        others = signal.setitimer(signal.ITIMER_REAL, _LOOK_S)  # somebody else's alarm is put off
        try:
            yield
        finally:
            over = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, *others)

    def _wait_for_the_dead(self) -> str:
        """Process ids of the workers that end within moments, who then need no notice by SIGCHLD any more."""
        ends = {process.sentinel: process for process in self.processes}
        dead = [ends[end] for end in multiprocessing.connection.wait(list(ends), _END_S)]  # type: ignore[index]
        for process in dead:
            process.join()
        return ", ".join(str(process.pid) for process in dead)

    def close(self) -> None:
        """End the workers and wait for them."""
        atexit.unregister(self._end)
        if not self.processes:  # nothing to do; and at the interpreter's end no thread could be started
            return
        # torch waits for one worker after another; those that hang are killed together.
        hung = threading.Timer(self._patience_s, self._kill)
        hung.start()
        try:
            self._end()
        finally:
            hung.cancel()

    def _end(self) -> None:
        # Deleting the iterator would do the same, but a traceback in flight may hold it alive.
        shutdown = getattr(self._results, "_shutdown_workers", None)
        try:
            if shutdown is not None:
                with _Explained.expected():
                    shutdown()
        finally:  # also when the handler of a signal raises in it
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
        for number in _NOT_FOR_WORKERS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOT_FOR_WORKERS)  # what came meanwhile is ignored as well
        self._on_start()


@contextmanager
def _held_back(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Signals for this thread wait until the block ends; processes forked in it begin with them held back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Explained:
    """torch's handler of SIGCHLD, whose error does not say what to do."""

    closing = 0  # pools whose workers are to end, in whatever way

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler

    @classmethod
    @contextmanager
    def expected(cls) -> Iterator[None]:
        """Inside, the death of a worker is no error."""
        cls.closing += 1
        try:
            yield
        finally:
            cls.closing -= 1

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.closing:
            return
        try:
            self._handler(number, frame)
        except RuntimeError as error:
            raise WorkerDied(str(error).strip()) from error


def _explain_deaths() -> None:
    """Have torch's notice of a dead worker be a `WorkerDied`, whatever the main thread does at that moment."""
    handler = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is threading.main_thread() and callable(handler) and type(handler) is not _Explained:
        signal.signal(signal.SIGCHLD, _Explained(handler))


def _unchanged(item: T) -> T:
    return item

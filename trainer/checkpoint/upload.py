"""Checkpoints in a store: copied there in the background, found and fetched again on a fresh node.

    PREFIX/step-00001000/...         the files of OUTPUT/checkpoints/step-00001000
    PREFIX/step-00001000/COMPLETE    put last, deleted first: without it nothing reads the others
    PREFIX/step-00001000/parts/1     only where nodes share no disk, until the marker is there: node 1 has put its files

A rank that shares no disk with rank 0 has an `Uploader` of its own or is beside one that has; the store is where they
tell rank 0's that they are done, because a thread that may wait for minutes must not take part in collectives.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.store.base import StoreError
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from trainer.checkpoint.files import MARKER, read_marker, step_name, step_of, superseded
from trainer.config.running import CheckpointConfig

POLL_S = 1.0
"""Seconds between two looks at whether the other nodes have put their files."""
NICE = 19
"""Of the upload's thread: where every core is busy, training goes first."""


class Remote:
    """The checkpoints below one address. Raises what the store raises."""

    def __init__(self, uri: str) -> None:
        self.store = open_store(uri)

    def uri(self, step: int) -> str:
        """Where a person would look for a checkpoint."""
        return self.store.uri(step_name(step))

    def survey(self) -> tuple[set[int], set[int]]:
        """(complete steps, steps of which there are only files without a marker)."""
        complete, seen = set(), set()
        for key in self.store.keys():
            folder, _, name = key.partition("/")
            step = step_of(folder)
            if step is not None:
                seen.add(step)
                if name == MARKER:
                    complete.add(step)
        return complete, seen - complete

    def marker(self, step: int) -> str:
        """Text of a marker."""
        return self.store.read(f"{step_name(step)}/{MARKER}").decode()

    def fetch(self, step: int, name: str, path: Path) -> None:
        """Copy one file here, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.store.read_to_file(f"{step_name(step)}/{name}", path)

    def put(self, step: int, name: str, source: Path | str) -> None:
        """Write one object, from a file or a text."""
        key = f"{step_name(step)}/{name}"
        if isinstance(source, Path):
            self.store.write_file(key, source)
        else:
            self.store.write(key, source.encode())

    def uncover(self, step: int) -> None:
        """Take the marker away."""
        self.store.delete(f"{step_name(step)}/{MARKER}")

    def remove(self, step: int) -> None:
        """Delete a checkpoint, the marker first."""
        self.uncover(step)
        for key in list(self.store.keys(f"{step_name(step)}/")):
            self.store.delete(key)
        self.remove_leftovers(step)

    def remove_leftovers(self, step: int) -> None:
        """Remove what killed uploads left half-written, where a store has such a thing."""
        if isinstance(self.store, LocalStore):
            self.store.remove_leftovers(step_name(step))

    def arrived(self, step: int, part: int, token: str) -> bool:
        """Whether another node has said that its files of this very checkpoint are there."""
        try:
            return self.store.read(f"{step_name(step)}/parts/{part}").decode() == token
        except FileNotFoundError:
            return False


@dataclass(frozen=True)
class Job:
    """One checkpoint to upload: the text of its marker, and the names of the files that this process puts."""

    step: int
    marker: str
    mine: list[str]


class Uploader:
    """Copies checkpoints of `folder` to a store in a thread. One for each disk; the first of them puts the markers.

    Args:
        part: which of `parts` disks this is.
        say: prints a line.
    """

    def __init__(
        self,
        remote: Remote,
        folder: Path,
        settings: CheckpointConfig,
        part: int,
        parts: int,
        say: Callable[[str], None],
    ) -> None:
        self.remote, self.folder, self.settings = remote, folder, settings
        self.part, self.parts, self.say = part, parts, say
        self.failures = 0
        self.news: deque[dict[str, float]] = deque()
        self._complete: set[int] = set()
        self._partial: set[int] = set()
        self._lock = threading.Lock()
        self._steps: list[int] = []
        self._thread: threading.Thread | None = None
        self._others_idle = threading.Event()

    def found(self, complete: set[int], partial: set[int]) -> None:
        """What the store held when the run began."""
        self._complete, self._partial = set(complete), set(partial)

    def has(self, step: int) -> bool:
        """Whether the store holds this checkpoint as it is here."""
        with self._lock:
            return step in self._complete

    def forget(self, step: int) -> None:
        """The checkpoint in the store is damaged, or not that of this step any more: upload it again."""
        with self._lock:
            self._complete.discard(step)

    def set_back(self, step: int) -> None:
        """Remove the checkpoints of later steps from the store, when the upload that is going on has ended.

        Raises:
            OSError: the store does not let them go, or that upload does not end in `checkpoint.upload_wait`, so that it
                could put back what was removed.
        """
        self.wait(self.settings.upload_wait)
        if self.busy():
            raise StoreError(f"the upload that is going on has not ended in {self.settings.upload_wait:g} s")
        with self._lock:
            later = sorted({found for found in self._complete | self._partial if found > step}, reverse=True)
            self._complete -= set(later)
            self._partial -= set(later)
        for found in later if self.part == 0 else []:
            self.remote.remove(found)

    def start(self, jobs: list[Job]) -> None:
        """Upload in the background, in this order. Only when nothing is `busy`."""
        assert not self.busy()
        self._steps = [job.step for job in jobs]
        self._others_idle.clear()
        # A daemon: a process that ends does not wait for an upload longer than it wants to.
        self._thread = threading.Thread(target=self._run, args=(jobs,), name="checkpoint-upload", daemon=True)
        self._thread.start()

    def busy(self) -> list[int]:
        """Checkpoints that are being uploaded or wait for it; their files must stay."""
        return self._steps if self._thread is not None and self._thread.is_alive() else []

    def wait(self, seconds: float) -> None:
        """Until nothing is busy, at most so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def others_are_idle(self) -> None:
        """Nobody else uploads: what has not arrived will not come."""
        self._others_idle.set()

    def _run(self, jobs: list[Job]) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own: training's threads come first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        for job in jobs:
            try:
                self._upload(job)
            except (OSError, ValueError) as error:
                self.failures += 1
                self.news.append({"upload_failures": self.failures})
                self.say(
                    f"warning: {step_name(job.step)} was not uploaded: {error}. The next save tries again, or "
                    f"the same command when it is started again (uploads that failed so far: {self.failures})"
                )
                return

    def _upload(self, job: Job) -> None:
        begin = time.monotonic()
        files = read_marker(job.marker)
        with self._lock:
            self._partial.add(job.step)
        if self.part == 0:
            self.remote.uncover(job.step)  # there may be another checkpoint of this step
        if self.parts == 1:
            self.remote.remove_leftovers(job.step)
        for name in job.mine:
            self.remote.put(job.step, name, self.folder / step_name(job.step) / name)
        token = hashlib.sha256(job.marker.encode()).hexdigest()
        if self.part > 0:
            self.remote.put(job.step, f"parts/{self.part}", token)
            return
        self._wait_for_others(job.step, token)
        self.remote.put(job.step, MARKER, job.marker)
        with self._lock:
            self._complete.add(job.step)
            self._partial.discard(job.step)
        size = sum(files[name]["bytes"] for name in job.mine)
        self.news.append({"upload_seconds": time.monotonic() - begin, "upload_bytes": float(size)})
        self._prune()

    def _wait_for_others(self, step: int, token: str) -> None:
        missing = list(range(1, self.parts))
        while True:
            last = self._others_idle.is_set()
            missing = [part for part in missing if not self.remote.arrived(step, part, token)]
            if not missing:
                break
            if last:
                raise StoreError(f"{self.remote.uri(step)}: another node has not put its files")
            self._others_idle.wait(POLL_S)
        for part in range(1, self.parts):
            self.remote.store.delete(f"{step_name(step)}/parts/{part}")

    def _prune(self) -> None:
        """Remove what newer checkpoints replace, and what uploads that were cut off left of older ones."""
        with self._lock:
            gone = superseded(self._complete, self.settings.keep, self.settings.keep_every)
            cut_off = [step for step in self._partial if step < max(self._complete) and step not in self._steps]
        for step in [*gone, *cut_off]:
            with self._lock:
                self._complete.discard(step)
                self._partial.discard(step)
            self.remote.remove(step)

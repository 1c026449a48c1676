"""Checkpoints in a store: a thread copies them to the store, and a fresh node fetches them from there.

    PREFIX/step-00001000/...         the files of OUTPUT/checkpoints/step-00001000
    PREFIX/step-00001000/COMPLETE    the marker: put last and deleted first, because without it no file is read
    PREFIX/step-00001000/parts/1     says that disk 1 has put its files; only where the ranks share no disk, and only
                                     until the marker is put

Each disk has one `Uploader`. The uploader of the first disk puts the marker when the uploaders of the other disks have
put their files. They tell it so through the store and not in a collective call, because a thread that may wait for
minutes must not take part in collective calls.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.outside.documents import MOST_JSON
from data_pipeline.store.base import StoreError, at_most
from data_pipeline.store.open import open_store
from trainer.checkpoint.background import lower_priority
from trainer.checkpoint.files import MARKER, read_marker, step_name, step_of
from trainer.checkpoint.retention import Retention

POLL_S = 1.0
"""Seconds between two looks at whether the other disks' uploaders have put their files."""


class Remote:
    """The checkpoints below one address in a store, `place`. Every method raises what the store raises."""

    def __init__(self, place: str) -> None:
        self.place, self.store = place, open_store(place)

    def is_folder(self, folder: Path) -> bool:
        """Whether the address is this folder on this machine."""
        marker = self.store.local_path(MARKER)
        return marker is not None and marker.parent.resolve() == folder.resolve()

    def uri(self, step: int) -> str:
        """The address of a checkpoint, for people."""
        return self.store.uri(step_name(step))

    def survey(self) -> tuple[set[int], set[int]]:
        """The steps of the complete checkpoints, and the steps of those that have files but no marker."""
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
        """The text of a checkpoint's marker."""
        return self.store.read(f"{step_name(step)}/{MARKER}", 0, MOST_JSON).decode()

    def fetch(self, step: int, name: str, path: Path, size: int) -> None:
        """Copy one file of a checkpoint to `path`, whole or not at all.

        Args:
            step: of the checkpoint.
            name: of the file in it.
            path: where it goes.
            size: its bytes by the marker.
        Raises:
            ValueError: the store has more bytes, or the name is none for a file here.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.store.read_to_file(f"{step_name(step)}/{name}", path, at_most(size))

    def put(self, step: int, name: str, source: Path | str) -> None:
        """Write one object of a checkpoint; `source` is a file or the object's text."""
        key = f"{step_name(step)}/{name}"
        if isinstance(source, Path):
            self.store.write_file(key, source)
        else:
            self.store.write(key, source.encode())

    def uncover(self, step: int) -> None:
        """Delete a checkpoint's marker, so that nobody reads its files."""
        self.store.delete(f"{step_name(step)}/{MARKER}")

    def remove(self, step: int) -> None:
        """Delete a checkpoint, the marker first."""
        self.uncover(step)
        for key in list(self.store.keys(f"{step_name(step)}/")):
            self.store.delete(key)
        self.remove_leftovers(step)

    def remove_leftovers(self, step: int) -> None:
        """Remove what killed uploads of this checkpoint have left: temporary files, or parts of files."""
        self.store.remove_leftovers(step_name(step), alone=True)

    def arrived(self, step: int, part: int, token: str) -> bool:
        """Whether the uploader of disk `part` has said that it has put its files of the checkpoint with this token."""
        try:
            return self.store.read(f"{step_name(step)}/parts/{part}", 0, len(token) + 1) == token.encode()
        except FileNotFoundError:
            return False


@dataclass(frozen=True)
class UploadJob:
    """One checkpoint to upload."""

    step: int
    marker: str  # the marker's text
    mine: list[str]  # names of the files that this disk's uploader puts


class Uploader:
    """Copies checkpoints of `folder` to a store in a thread. Each disk has one; the first disk's puts the markers.

    Args:
        retention: which of them stay on the store.
        part: the number of this disk, from 0.
        parts: how many disks there are.
        say: prints a line.
    """

    def __init__(
        self,
        remote: Remote,
        folder: Path,
        retention: Retention,
        part: int,
        parts: int,
        say: Callable[[str], None],
    ) -> None:
        self.remote, self.folder, self.retention, self.settings = remote, folder, retention, retention.settings
        self.part, self.parts, self.say = part, parts, say
        self.failures = 0
        self._metrics: deque[dict[str, float]] = deque()  # a deque, because the thread appends while the loop pops
        self._complete: set[int] = set()
        self._partial: set[int] = set()
        self._lock = threading.Lock()
        self._steps: list[int] = []
        self._thread: threading.Thread | None = None
        self._others_idle = threading.Event()

    def set_stored(self, complete: set[int], partial: set[int]) -> None:
        """Note the steps of the complete and of the cut-off checkpoints that the store holds."""
        self._complete, self._partial = set(complete), set(partial)

    def has(self, step: int) -> bool:
        """Whether the store holds the checkpoint of this step with the same files as `folder`."""
        with self._lock:
            return step in self._complete

    def forget(self, step: int) -> None:
        """Take it that the store lacks this checkpoint, because the stored one is damaged or was written anew here."""
        with self._lock:
            self._complete.discard(step)

    def set_back(self, step: int) -> None:
        """Wait for the running upload to end, then remove the checkpoints of later steps from the store.

        Raises:
            OSError: the store does not delete them, or the running upload does not end in `checkpoint.upload_wait`
                seconds; that upload could put a removed checkpoint back.
        """
        self.wait(self.settings.upload_wait)
        if self.busy():
            raise StoreError(f"the upload that is going on has not ended in {self.settings.upload_wait:g} s")
        with self._lock:
            later = sorted({other for other in self._complete | self._partial if other > step}, reverse=True)
            self._complete -= set(later)
            self._partial -= set(later)
        for other in later if self.part == 0 else []:
            self.remote.remove(other)

    def start(self, jobs: list[UploadJob]) -> None:
        """Upload in a thread, in this order. To be called only when nothing is `busy`."""
        assert not self.busy()
        self._steps = [job.step for job in jobs]
        self._others_idle.clear()
        # The thread is a daemon, because a process that ends must not wait for an upload; `finish` has waited before.
        self._thread = threading.Thread(target=self._run, args=(jobs,), name="checkpoint-upload", daemon=True)
        self._thread.start()

    def busy(self) -> list[int]:
        """Steps of the checkpoints that are being uploaded or will be next; their files must stay."""
        return self._steps if self._thread is not None and self._thread.is_alive() else []

    def wait(self, seconds: float) -> None:
        """Wait until nothing is busy, at most so many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def others_are_idle(self) -> None:
        """Note that the other disks' uploaders have ended: files that have not arrived by now will not come."""
        self._others_idle.set()

    def take_metrics(self) -> dict[str, float]:
        """upload_seconds, upload_bytes and upload_failures of the uploads that ended since the last call."""
        metrics: dict[str, float] = {}
        while self._metrics:
            metrics |= self._metrics.popleft()
        return metrics

    def _run(self, jobs: list[UploadJob]) -> None:
        lower_priority()
        for job in jobs:
            try:
                self._upload(job)
            except (OSError, ValueError) as error:
                self.failures += 1
                self._metrics.append({"upload_failures": self.failures})
                self.say(
                    f"warning: {step_name(job.step)} was not uploaded: {error}. The next save tries again, or "
                    f"the same command when it is started again (uploads that failed so far: {self.failures})"
                )
                return

    def _upload(self, job: UploadJob) -> None:
        begin = time.monotonic()
        files = read_marker(job.marker)
        with self._lock:
            self._partial.add(job.step)
        if self.part == 0:
            self.remote.uncover(job.step)  # the store may hold another checkpoint of this step
        if self.parts == 1:  # else the temporary files may be those of another disk's uploader
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
        self._metrics.append({"upload_seconds": time.monotonic() - begin, "upload_bytes": float(size)})
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
        """Remove the checkpoints that newer ones replace, and older ones whose upload was cut off."""
        with self._lock:
            replaced = self.retention.superseded(self._complete)
            cut_off = [step for step in self._partial if step < max(self._complete) and step not in self._steps]
        for step in [*replaced, *cut_off]:
            with self._lock:
                self._complete.discard(step)
                self._partial.discard(step)
            self.remote.remove(step)

"""Which checkpoints are uploaded, and which disk uploads which of their files: the ranks agree on both.

Ranks that share no disk each have files that the others lack (shared_disks.py), so every disk has an `Uploader`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from trainer.checkpoint.files import is_complete, marker_of, read_marker, step_name, steps_in
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.shared_disks import SharedDisks
from trainer.checkpoint.upload import Remote, Uploader, UploadJob
from trainer.distributed import Ranks

FINISH_POLL_S = 2.0
"""Seconds between two looks at whether the last upload has ended. At each look the ranks exchange what they know."""


class JointUpload:
    """The uploads of one run's checkpoints. Every rank makes every call, except where a method says otherwise.

    Args:
        remote: where the checkpoints go.
        folder: the run's checkpoints on this rank's disk.
        say: prints a line.
    Raises:
        ValueError: `remote` is `folder`, so that checkpoints would be uploaded onto themselves.
    """

    def __init__(
        self,
        retention: Retention,
        remote: Remote,
        folder: Path,
        ranks: Ranks,
        shared_disks: SharedDisks,
        say: Callable[[str], None],
    ) -> None:
        if remote.is_folder(folder):
            raise ValueError(
                f"checkpoint.upload={retention.settings.upload} is where checkpoints are; choose another place"
            )
        self.retention, self.folder, self.say = retention, folder, say
        self.settings = retention.settings
        self.ranks, self.shared_disks = ranks, shared_disks
        self._uploader = Uploader(remote, folder, retention, shared_disks.part, len(shared_disks.groups), say)

    def begin(self, stored: set[int], cut_off: set[int]) -> None:
        """Note the steps of the checkpoints that the store holds at the start of the run.

        Args:
            stored: of the complete ones.
            cut_off: of those without a marker, because their upload did not end.
        """
        self._uploader.set_stored(stored, cut_off)

    def saved(self, step: int) -> None:
        """Upload the checkpoint of `step`, which was just written, even where the store has one of the same step."""
        self._uploader.forget(step)
        self.start_missing()

    def start_missing(self) -> bool:
        """Start to upload the checkpoints that the store lacks, the newest first, unless an upload is running.

        Returns:
            Whether an upload is running now.
        """
        busy = self.ranks.gather(self._uploader.busy() if self.shared_disks.is_keeper else [])
        if any(busy):
            if not any(busy[1:]):
                self._uploader.others_are_idle()
            return True
        markers: dict[int, str] = {}
        if self.ranks.is_main:
            complete = steps_in(self.folder, complete=True)
            kept = set(complete) - set(self.retention.superseded(complete))
            missing = sorted((step for step in kept if not self._uploader.has(step)), reverse=True)
            markers = {step: marker_of(self.folder / step_name(step)) for step in missing}
        markers = self.ranks.broadcast(markers)
        jobs = self._jobs(markers)
        if jobs and self.shared_disks.is_keeper:
            self._uploader.start(jobs)
        return bool(jobs)

    def _jobs(self, markers: dict[int, str]) -> list[UploadJob]:
        """Share the files of checkpoints out: the first disk that has a file uploads it."""
        names = {step: read_marker(text) for step, text in markers.items()}
        have: dict[int, set[str]] = {}
        if self.shared_disks.is_keeper:
            for step, files in names.items():
                directory = self.folder / step_name(step)
                have[step] = {name for name in files if is_complete(directory) and (directory / name).is_file()}
        owned = self.ranks.gather(have)
        jobs = []
        for step, text in markers.items():
            left, shares = set(names[step]), []
            for group in self.shared_disks.groups:
                shares.append(sorted(left & owned[group[0]][step]))
                left -= set(shares[-1])
            if not left:
                jobs.append(UploadJob(step, text, shares[self.shared_disks.part]))
        return jobs

    def finish(self, stop_requested: Callable[[], bool], looks: Callable[[], None]) -> bool:
        """Wait a bounded time for the upload of the last checkpoint, a shorter one once any rank is asked to stop.

        Args:
            stop_requested: whether this rank has been asked to stop.
            looks: called before each look at the upload, which is soon followed by the next.
        Returns:
            On every rank, whether the upload was left to the next start of the run because of that.
        """
        seconds, since, failures = self.settings.upload_wait, time.monotonic(), self._uploader.failures
        hurried, announced = False, -1.0
        while True:
            looks()
            if not hurried and any(self.ranks.gather(stop_requested())):
                hurried, left = True, seconds - (time.monotonic() - since)
                seconds, since = max(0.0, min(left, self.settings.upload_wait_stopped)), time.monotonic()
            failed, over = self.ranks.broadcast(
                (self._uploader.failures > failures, time.monotonic() - since > seconds)
            )
            going = not failed and self.start_missing()  # one that has failed here is left to the next start
            if not going or over:
                break
            if announced != seconds and self.ranks.is_main:
                who = "because the run was asked to stop, it" if announced >= 0 else "the run"
                self.say(f"{who} waits at most {seconds:.3g} s for the upload to {self.settings.upload}")
            announced = seconds
            self.wait(min(FINISH_POLL_S, seconds))
        if self.ranks.is_main and going and not failed:
            self.say(f"the upload did not end in {seconds:.3g} s; the same command goes on with it")
        elif self.ranks.is_main and announced >= 0 and not failed:
            self.say(f"uploaded to {self.settings.upload}")
        return hurried and (going or failed)

    # ---- each rank by itself --------------------------------------------------------------------------------------

    def busy(self) -> list[int]:
        """Steps of the checkpoints that this disk uploads or is about to upload; their files must stay."""
        return self._uploader.busy()

    def wait(self, seconds: float) -> None:
        """Wait until this disk uploads nothing, at most so many seconds."""
        self._uploader.wait(seconds)

    def set_back(self, step: int) -> None:
        """Remove the checkpoints of later steps from the store; see `Uploader.set_back`."""
        self._uploader.set_back(step)

    def take_metrics(self) -> dict[str, float]:
        """upload_seconds, upload_bytes and upload_failures of the uploads that ended since the last call."""
        return self._uploader.take_metrics()

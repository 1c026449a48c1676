"""Which checkpoints are uploaded, and which of their files from which disk: what the ranks agree on.

Ranks that share no disk each have files that others lack (see neighbours.py); their uploaders put them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.store.local import LocalStore
from trainer.checkpoint.files import MARKER, is_complete, read_marker, step_name, steps_in, superseded
from trainer.checkpoint.shared_disks import Neighbours
from trainer.checkpoint.upload import Job, Remote, Uploader
from trainer.config.running import CheckpointConfig
from trainer.distributed import Ranks

FINISH_POLL_S = 2.0
"""Seconds between two looks at whether the last upload has ended; the ranks stay in touch meanwhile."""


class JointUpload:
    """The uploads of one run's checkpoints. Every rank makes every call.

    Raises:
        ValueError: checkpoints would be uploaded to where they are.
    """

    def __init__(
        self,
        settings: CheckpointConfig,
        folder: Path,
        ranks: Ranks,
        neighbours: Neighbours,
        say: Callable[[str], None],
    ) -> None:
        remote = Remote(settings.upload)
        if isinstance(remote.store, LocalStore) and remote.store.root.resolve() == folder.resolve():
            raise ValueError(f"checkpoint.upload={settings.upload} is where checkpoints are; choose another place")
        self.settings, self.folder, self.say = settings, folder, say
        self.ranks, self.neighbours = ranks, neighbours
        self.uploader = Uploader(remote, folder, settings, neighbours.part, len(neighbours.groups), say)

    def go_on(self) -> bool:
        """Start uploading what the store lacks, the newest first, unless an upload is going on; whether one is now."""
        busy = self.ranks.gather(self.uploader.busy() if self.neighbours.is_keeper else [])
        if any(busy):
            if not any(busy[1:]):
                self.uploader.others_are_idle()
            return True
        markers: dict[int, str] = {}
        if self.ranks.is_main:
            complete = steps_in(self.folder, complete=True)
            wanted = set(complete) - set(superseded(complete, self.settings.keep, self.settings.keep_every))
            missing = sorted((step for step in wanted if not self.uploader.has(step)), reverse=True)
            markers = {step: (self.folder / step_name(step) / MARKER).read_text() for step in missing}
        markers = self.ranks.broadcast(markers)
        jobs = self._jobs(markers)
        if jobs and self.neighbours.is_keeper:
            self.uploader.start(jobs)
        return bool(jobs)

    def _jobs(self, markers: dict[int, str]) -> list[Job]:
        """Divide the files of checkpoints among the disks; each file goes up from the first disk that has it."""
        names = {step: read_marker(text) for step, text in markers.items()}
        have: dict[int, set[str]] = {}
        if self.neighbours.is_keeper:
            for step, files in names.items():
                directory = self.folder / step_name(step)
                have[step] = {name for name in files if is_complete(directory) and (directory / name).is_file()}
        owned = self.ranks.gather(have)
        jobs = []
        for step, text in markers.items():
            left, shares = set(names[step]), []
            for group in self.neighbours.groups:
                shares.append(sorted(left & owned[group[0]][step]))
                left -= set(shares[-1])
            if not left:
                jobs.append(Job(step, text, shares[self.neighbours.part]))
        return jobs

    def finish(self, stop_requested: Callable[[], bool]) -> bool:
        """Wait a bounded time for the upload of the last checkpoint, a shorter one once any rank is asked to stop.

        Args:
            stop_requested: whether this rank has been asked to stop.
        Returns:
            On every rank, whether the upload was left to the next start of the run because of that.
        """
        seconds, since, failures = self.settings.upload_wait, time.monotonic(), self.uploader.failures
        hurried, announced = False, -1.0
        while True:
            if not hurried and any(self.ranks.gather(stop_requested())):
                hurried, left = True, seconds - (time.monotonic() - since)
                seconds, since = max(0.0, min(left, self.settings.upload_wait_stopped)), time.monotonic()
            going = self.go_on()
            failed = self.uploader.failures > failures
            over = time.monotonic() - since > seconds
            going, failed, over = self.ranks.broadcast((going, failed, over))
            if not going or failed or over:
                break
            if announced != seconds and self.ranks.is_main:
                why = "told to stop: " if announced >= 0 else ""
                self.say(f"{why}waiting up to {seconds:.3g} s for the upload to {self.settings.upload}")
            announced = seconds
            self.uploader.wait(min(FINISH_POLL_S, seconds))
        if self.ranks.is_main and going and not failed:
            self.say(f"the upload did not end in {seconds:.3g} s; the same command goes on with it")
        elif self.ranks.is_main and announced >= 0 and not failed:
            self.say(f"uploaded to {self.settings.upload}")
        return hurried and (going or failed)

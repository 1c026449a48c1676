"""Writes checkpoints, so that each is complete or not used.

A save through memory (`staging.py`) lets training go on as soon as all state is in host memory; the rest happens beside
the steps (`background_save.py`). Where memory has no room, and where nothing follows the save, the files are written to
the disk straight away, and training waits.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_pipeline.read.loader import Position
from data_pipeline.store.files import atomic_file
from trainer.checkpoint.background_save import BackgroundSave, SaveFailed
from trainer.checkpoint.files import (
    Files,
    flush_and_digest,
    marker_text,
    names_in,
    remove,
    step_name,
    steps_in,
    write_marker,
)
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.shared_disks import SharedDisks
from trainer.checkpoint.staging import Staging
from trainer.config.loader import to_yaml
from trainer.config.run import RunConfig
from trainer.distributed import Ranks
from trainer.join.equality import program_digest
from trainer.method import Loader, Method
from trainer.randomness import rng_state

BEST_FILE = "best.json"
"""Says beside the checkpoints which one is the best, for people."""


class Unwritten(RuntimeError):
    """A checkpoint could not be written, because its disk is full for instance; the message says what to do."""


class StagingFull(Unwritten):
    """Memory that was free before a save began was not enough for it."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has just become complete.

    Attributes:
        size: bytes of its files.
        seconds: from the beginning of the save until now.
    """

    step: int
    size: int
    seconds: float


class Writer:
    """Writes and removes the checkpoints of one run. Every rank makes every call.

    Attributes:
        forked_from: what each checkpoint says of where a fork comes from; None in a run that is no fork.

    Args:
        folder: the run's checkpoints.
        retention: which of them stay.
        uploading: the steps whose files must stay, on this rank's disk; it is called in a thread as well.
        say: prints a line, on any rank.
    """

    def __init__(
        self,
        config: RunConfig,
        ranks: Ranks,
        shared_disks: SharedDisks,
        folder: Path,
        retention: Retention,
        uploading: Callable[[], list[int]],
        say: Callable[[str], None],
    ) -> None:
        self.retention = retention
        self.config, self.ranks, self.shared_disks, self.folder = config, ranks, shared_disks, folder
        self.uploading, self.say = uploading, say
        self.forked_from: dict[str, Any] | None = None
        self._program = program_digest()  # at the start, because the files may change while the run lasts
        self._threads = ranks.with_own_group() if config.checkpoint.staging else ranks
        self._staging: Staging | None = None
        self._background: tuple[BackgroundSave, int, float] | None = None  # with its step and beginning

    @property
    def staging(self) -> Staging:
        """The memory of this run; it is looked for when it is first needed, by all ranks at the same moment."""
        if self._staging is None:
            output = Path(self.config.output)
            output.mkdir(parents=True, exist_ok=True)  # another node's own disk has it only from the first save on
            self._staging = Staging(self.config.checkpoint.staging, output, self.ranks, self.say)
        return self._staging

    def write(
        self, step: int, position: Position, method: Method[Any], loader: Loader[Any], wait: bool
    ) -> Saved | None:
        """Write the state after `step` steps; no save may be on its way.

        Args:
            wait: return only when the checkpoint is complete.
        Returns:
            None where the checkpoint is on its way; `advance` brings it on.
        Raises:
            RuntimeError: the disk is full or cannot be written; the message names it.
        """
        assert self._background is None
        begin = time.monotonic()
        directory = self.folder / step_name(step)
        self.remove_leftovers()
        staged = not wait and self.staging.has_room(method.saved_bytes, loader.shared_bytes)
        try:
            if self.shared_disks.is_keeper:
                if directory.exists():  # the run was at this step before, and was then set back
                    remove(directory)
                directory.mkdir(parents=True)
            self.ranks.barrier()
            if staged:
                place = self._stage(step, position, method, loader)
                complete = partial(self._complete, directory, step)
                save = BackgroundSave(self.ranks, self._threads, place, directory, complete)
                self._background = save, step, begin
                return None
            self._write_state(directory, step, position, method, loader)
            self.ranks.barrier()
            files = self.digest_together(directory)
            self._complete(directory, step, files)
            self.ranks.barrier()
        except StagingFull:
            raise
        except (OSError, RuntimeError) as error:  # torch writes its files without an errno
            raise self._unwritable(directory, error) from error
        return Saved(step, _size(files), time.monotonic() - begin)

    def _stage(self, step: int, position: Position, method: Method[Any], loader: Loader[Any]) -> Path:
        """Write this rank's files to memory. Returns their folder.

        Raises:
            StagingFull: another program has taken the memory since it was measured.
        """
        place = self.staging.mine
        try:
            self._write_state(self.staging.prepare(), step, position, method, loader)
        except (OSError, RuntimeError) as error:
            self.staging.release()
            raise StagingFull(
                f"the save of step {step} could not be written to memory, {place}: {error}. Give the job more memory, "
                "or set checkpoint.staging= to save straight to the disk; the same command goes on from the "
                "checkpoint before"
            ) from error
        return place

    def _write_state(
        self, place: Path, step: int, position: Position, method: Method[Any], loader: Loader[Any]
    ) -> None:
        """Write this rank's files, and the main rank's files of the run."""
        method.save(place)
        torch.save(rng_state(), place / f"rng-{self.ranks.rank:05d}.pt")
        if self.ranks.is_main:
            (place / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
            state: dict[str, Any] = {"program": self._program}
            state |= {"step": step, "epoch": position.epoch, "consumed": position.consumed}
            state |= {} if self.retention.best is None else {"best": asdict(self.retention.best)}
            state |= {} if self.forked_from is None else {"forked_from": self.forked_from}
            state |= {"ranks": self.ranks.world_size} | dict(method.layout) | {"order": dict(loader.identity)}
            (place / "state.json").write_text(json.dumps(state, indent=1))

    def _complete(self, directory: Path, step: int, files: Files) -> None:
        """Write the marker, then remove what the new checkpoint replaces; one rank of each disk does so."""
        if self.shared_disks.is_keeper:
            write_marker(directory, marker_text(step, files))
            self._write_best()
            self.prune()

    def _write_best(self) -> None:
        """Let `BEST_FILE` name the best checkpoint, which a step back or another term may have changed."""
        best, file = self.retention.best, self.folder / BEST_FILE
        if best is None:
            file.unlink(missing_ok=True)
        else:
            with atomic_file(file) as temporary:
                temporary.write_text(json.dumps(asdict(best)))

    def advance(self, wait: bool) -> Saved | None:
        """Bring a save through memory on, if there is one; the loop calls this method after every step.

        Args:
            wait: return only when no save is on its way.
        Returns:
            The checkpoint that has become complete in this call, the same on every rank.
        Raises:
            RuntimeError: some rank could not write its files; raised on every rank.
        """
        if self._background is None:
            return None
        save, step, begin = self._background
        try:
            if not save.ended(wait):
                return None
        except SaveFailed as error:
            self.close()
            raise self._unwritable(self.folder / step_name(step), error) from error
        self.close()
        return Saved(step, _size(save.files), time.monotonic() - begin)

    def close(self) -> None:
        """Give the memory of a save back, also where the save was not completed; each rank calls it by itself."""
        self._background = None
        if self._staging is not None:
            self._staging.release()

    def _unwritable(self, directory: Path, error: Exception) -> Unwritten:
        free = shutil.disk_usage(self.folder.parent).free
        return Unwritten(
            f"{directory} could not be written: {error}. Its disk has {free / 1e6:.0f} MB left (there must be room "
            "for one checkpoint more than checkpoint.keep). The same command goes on from the checkpoint before"
        )

    def digest_together(self, directory: Path) -> Files:
        """Flush every file to the disk; the size and sha256 of each. The ranks that share a disk divide its files.

        Each rank lists the directory and the lists are put together, because over NFS a rank may not see for a while
        what another rank has just written.
        """
        names = self.ranks.gather(names_in(directory))
        on_disk = sorted(set().union(*(names[rank] for rank in self.shared_disks.mine)))
        mine = {name: flush_and_digest(directory / name) for name in self.shared_disks.share(on_disk)}
        parts = self.ranks.gather(mine)
        return {name: entry for part in parts for name, entry in sorted(part.items())}

    def remove_leftovers(self) -> None:
        """Remove the saves that were cut off, from the disk and from memory, because they may be what fills them."""
        self.staging.remove_leftovers()
        for step in steps_in(self.folder, complete=False) if self.shared_disks.is_keeper else []:
            leftover = self.folder / step_name(step)
            self.say(f"removing {leftover}, which was cut off while it was written")
            self._remove(leftover)

    def prune(self) -> None:
        """Remove the checkpoints that newer ones replace, except those that are being uploaded; of one disk."""
        busy = self.uploading()
        for step in self.retention.superseded(steps_in(self.folder, complete=True)):
            if step not in busy:
                self._remove(self.folder / step_name(step))

    def _remove(self, directory: Path) -> None:
        """Delete a checkpoint. Where that fails, for instance on NFS with open files, the next save tries again."""
        try:
            remove(directory)
        except OSError as error:
            self.say(f"warning: {directory} could not be removed ({error.strerror}); the next checkpoint tries again")


def _size(files: Files) -> int:
    return sum(entry["bytes"] for entry in files.values())

"""Makes one checkpoint whole: checks its files, and fetches those with faults. Every rank makes every call.

The ranks share the files out and check the size and sha256 of each. A file that is missing on a disk, or differs from
what was written, is fetched from the store if the store holds the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.files import (
    MARKER,
    Files,
    fault,
    marker_of,
    read_marker,
    remove_unfinished,
    step_name,
    unlisted,
    write_marker,
)
from trainer.checkpoint.scattered import is_scattered, said
from trainer.checkpoint.shared_disks import SharedDisks
from trainer.checkpoint.upload import Remote
from trainer.distributed import Ranks


@dataclass(frozen=True)
class Trouble:
    """What remains wrong with a checkpoint when its files were fetched as far as possible.

    Attributes:
        faults: in words; none where the checkpoint is whole on every disk.
        in_store: the store holds the same checkpoint.
        scattered: the disks have all files together, and the store, which could make each disk whole, has them not.
    """

    faults: list[str]
    in_store: bool
    scattered: bool = False


class Repair:
    """Checks and repairs the checkpoints of a run, one at a time.

    Attributes:
        store_error: the last error of the store itself on this rank; empty where there was none.

    Args:
        folder: the run's checkpoints on this rank's disk.
        remote: the checkpoints in the store; None where `checkpoint.upload` is not set.
        say: prints a line, on any rank.
    """

    def __init__(
        self, ranks: Ranks, shared_disks: SharedDisks, folder: Path, remote: Remote | None, say: Callable[[str], None]
    ) -> None:
        self.ranks, self.shared_disks, self.folder, self.remote, self.say = ranks, shared_disks, folder, remote, say
        self.store_error = ""

    def attempt(self, step: int, stored: bool) -> Trouble:
        """Check a checkpoint on every disk, and fetch its missing and damaged files.

        Args:
            stored: the store may hold the checkpoint; False does not ask it.
        Returns:
            What remains wrong.
        """
        directory = self.folder / step_name(step)
        text, in_store, marker_faults = self._marker(step, directory, stored)
        if marker_faults:
            return Trouble(marker_faults, in_store)
        files = read_marker(text)
        faults = self._check(directory, files, sorted(files))
        if any(faults) and in_store:
            self._fetch(step, directory, files, faults[self.shared_disks.part])
            faults = self._check(directory, files, sorted(faults[self.shared_disks.part]))
        remaining = sorted(set().union(*(disk.values() for disk in faults), *self._unlisted(directory, files)))
        if not remaining and self.shared_disks.is_keeper and _local_marker(directory)[0] != text:
            write_marker(directory, text)
        self.ranks.barrier()
        if self.remote is not None and not in_store and is_scattered(faults):
            return Trouble([said(step, faults, self.remote.place)], in_store, scattered=True)
        return Trouble(remaining, in_store)

    def _marker(self, step: int, directory: Path, stored: bool) -> tuple[str, bool, list[str]]:
        """The marker's text, whether the store holds the same checkpoint, and the faults if no marker can be read."""
        local = self.ranks.gather(_local_marker(directory) if self.shared_disks.is_keeper else ("", ""))
        remote = self.ranks.broadcast(self._stored_marker(step) if self.ranks.is_main and stored else ("", ""))
        texts = [text for text, _ in [*local, remote] if text]
        if not texts:
            return "", False, sorted({marker_fault for _, marker_fault in [*local, remote] if marker_fault})
        return texts[0], bool(remote[0]) and read_marker(remote[0]) == read_marker(texts[0]), []

    def _stored_marker(self, step: int) -> tuple[str, str]:
        """The text and the fault of the marker in the store; both empty where the store has none."""
        if self.remote is None:
            return "", ""
        try:
            text = self.remote.marker(step)
            read_marker(text)
        except (OSError, ValueError) as error:
            self._note(error)
            return "", f"{self.remote.uri(step)}: {error}"
        return text, ""

    def _check(self, directory: Path, files: Files, names: list[str]) -> list[dict[str, str]]:
        """For each disk: name -> fault, for the named files that have one. The ranks of a disk share the work."""
        mine = {name: fault(directory / name, files[name]) for name in self.shared_disks.share(names)}
        by_rank = self.ranks.gather({name: text for name, text in mine.items() if text})
        return [
            {name: text for rank in group for name, text in by_rank[rank].items()} for group in self.shared_disks.groups
        ]

    def _unlisted(self, directory: Path, files: Files) -> list[list[str]]:
        """For each rank: what lies in the checkpoint on its disk beside the files of the marker."""
        mine: list[str] = []
        if self.shared_disks.is_keeper:
            remove_unfinished(directory)
            mine = unlisted(directory, files)
        return self.ranks.gather(mine)

    def _fetch(self, step: int, directory: Path, files: Files, faults: dict[str, str]) -> None:
        """Fetch the files with faults to this disk; its ranks share the work. The next check finds what failed."""
        assert self.remote is not None
        uri = self.remote.uri(step)
        if self.shared_disks.is_keeper:
            self.say(f"fetching {len(faults)} files of {step_name(step)} from {uri}")
        for name in self.shared_disks.share(sorted(faults)):
            try:
                if (directory / name).exists():
                    self.say(f"warning: {faults[name]}: replaced from {uri}")
                self.remote.fetch(step, name, directory / name, files[name]["bytes"])
            except (OSError, ValueError) as error:
                self._note(error)
                self.say(f"warning: {uri}/{name} could not be fetched: {error}")

    def _note(self, error: Exception) -> None:
        """Remember an error of the store itself; a missing or damaged object in the store is no such error."""
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            self.store_error = str(error)


def _local_marker(directory: Path) -> tuple[str, str]:
    """The text and the fault of the marker on this disk; both empty where the disk has none."""
    try:
        text = marker_of(directory)
        read_marker(text)
    except FileNotFoundError:
        return "", ""
    except (OSError, ValueError) as error:
        return "", f"{directory / MARKER}: {error}"
    return text, ""

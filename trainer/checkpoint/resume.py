"""Which checkpoint a run goes on from: the newest that is whole, here or in the store. Every rank makes every call.

Sizes and sha256 of every file are checked, the files divided among the ranks. What is missing here, or is not as it was
written, is fetched from the store if that holds the same checkpoint. A checkpoint that stays damaged is passed over
with a warning and renamed, not deleted; the one before it is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_pipeline.store.base import StoreError
from trainer.checkpoint.files import (
    MARKER,
    Files,
    fault,
    read_marker,
    set_aside,
    step_name,
    steps_in,
    write_marker,
)
from trainer.checkpoint.shared_disks import Neighbours
from trainer.checkpoint.upload import Remote
from trainer.distributed import Ranks


class Choice:
    """Finds the checkpoint to go on from.

    Args:
        folder: the run's checkpoints on this rank's disk.
        remote: the store, if there is one.
        say: prints a line, on any rank.
    """

    def __init__(
        self, ranks: Ranks, neighbours: Neighbours, folder: Path, remote: Remote | None, say: Callable[[str], None]
    ) -> None:
        self.ranks, self.neighbours, self.folder, self.remote, self.say = ranks, neighbours, folder, remote, say
        self.local: set[int] = set()  # complete on some disk
        # Complete in the store, as far as is known: with the local marker, if there is one.
        self.stored: set[int] = set()
        self.cut_off: set[int] = set()  # files without a marker in the store
        self.trouble = ""  # why something in the store could not be read

    def look(self) -> list[int]:
        """Steps of which there is a complete checkpoint, here or in the store; ascending.

        Raises:
            StoreError, ValueError: the store cannot be asked, and there is nothing here to go on from.
        """
        here = steps_in(self.folder, complete=True) if self.neighbours.is_keeper else []
        self.local = set().union(*self.ranks.gather(here))
        if self.neighbours.is_keeper:
            for step in steps_in(self.folder, complete=False):
                self.say(
                    f"warning: {self.folder / step_name(step)} has no {MARKER}: it was cut off while it was written, "
                    "and is not used"
                )
        if self.remote is not None:
            answer = self.ranks.broadcast(_ask(self.remote) if self.ranks.is_main else None)
            if isinstance(answer, OSError):
                self._without_store(answer)
            else:
                self.stored, self.cut_off = answer
        return sorted(self.local | self.stored)

    def newest(self) -> Path | None:
        """The newest checkpoint, made whole on every disk; None where `look` found none.

        Raises:
            ValueError: there are checkpoints, and all are damaged.
            StoreError: there may be a good one in the store, but it does not answer.
        """
        damaged: list[int] = []
        faults: list[str] = []
        for step in sorted(self.local | self.stored, reverse=True):
            found = self._make_whole(step)
            if not found:
                self._set_aside(damaged)
                return self.folder / step_name(step)
            if self.ranks.is_main:
                for line in found:
                    self.say(f"warning: {line}")
                self.say(f"warning: {step_name(step)} is damaged and passed over")
            self.stored.discard(step)
            damaged.append(step)
            faults += found
        if trouble := [text for text in self.ranks.gather(self.trouble) if text]:
            raise StoreError(
                f"no whole checkpoint here, and the store fails: {trouble[0]}. Start again when it answers"
            )
        if damaged:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged: {'; '.join(faults)}. Put the files back, or rename the "
                "directory to start afresh; nothing was changed"
            )
        return None

    def _without_store(self, error: OSError) -> None:
        """Going on from what is here is safe, because every checkpoint is here first. Starting afresh is not."""
        if isinstance(error, PermissionError | FileNotFoundError):
            raise ValueError(f"checkpoint.upload cannot be read: {error}") from error
        if not self.local:
            raise StoreError(f"no checkpoint here, and whether the store has one is not known: {error}") from error
        if self.ranks.is_main:
            self.say(f"warning: checkpoint.upload cannot be read: {error}. Going on from what is here")

    def _make_whole(self, step: int) -> list[str]:
        """Check a checkpoint on every disk and fetch what is not as it should be; what is wrong with it in the end."""
        directory = self.folder / step_name(step)
        text, in_store, complaints = self._marker(step, directory)
        if complaints:
            return complaints
        files = read_marker(text)
        wrong = self._check(directory, files, sorted(files))
        if any(wrong) and in_store:
            self._fetch(step, directory, wrong[self.neighbours.part])
            wrong = self._check(directory, files, sorted(wrong[self.neighbours.part]))
        found = sorted(set().union(*(part.values() for part in wrong)))
        if not found and self.neighbours.is_keeper and not _same(directory, text):
            write_marker(directory, text)
        self.ranks.barrier()
        return found

    def _marker(self, step: int, directory: Path) -> tuple[str, bool, list[str]]:
        """(text of the marker, whether the store has the same checkpoint, or else what is wrong)."""
        here = self.ranks.gather(_local_marker(directory) if self.neighbours.is_keeper else ("", ""))
        there = self.ranks.broadcast(self._stored_marker(step) if self.ranks.is_main else None)
        texts = [text for text, _ in [*here, there] if text]
        if not texts:
            return "", False, sorted({complaint for _, complaint in [*here, there] if complaint})
        same = bool(there[0]) and read_marker(there[0]) == read_marker(texts[0])
        if not same:  # the store has another one of this step, or none: it will be uploaded again
            self.stored.discard(step)
        return texts[0], same, []

    def _stored_marker(self, step: int) -> tuple[str, str]:
        if self.remote is None or step not in self.stored:
            return "", ""
        try:
            text = self.remote.marker(step)
            read_marker(text)
        except (OSError, ValueError) as error:
            self._note(error)
            return "", f"{self.remote.uri(step)}: {error}"
        return text, ""

    def _check(self, directory: Path, files: Files, names: list[str]) -> list[dict[str, str]]:
        """What is wrong with the named files of each disk, by name; a disk's files are divided among its ranks."""
        mine = {name: fault(directory / name, files[name]) for name in self.neighbours.share(names)}
        answers = self.ranks.gather({name: words for name, words in mine.items() if words})
        return [
            {name: words for rank in group for name, words in answers[rank].items()} for group in self.neighbours.groups
        ]

    def _fetch(self, step: int, directory: Path, wrong: dict[str, str]) -> None:
        """Fetch one disk's files, divided among its ranks. What fails is found by the check that follows."""
        assert self.remote is not None
        uri = self.remote.uri(step)
        if self.neighbours.is_keeper:
            self.say(f"fetching {len(wrong)} files of {step_name(step)} from {uri}")
        for name in self.neighbours.share(sorted(wrong)):
            if (directory / name).exists():
                self.say(f"warning: {wrong[name]}: replaced from {uri}")
            try:
                self.remote.fetch(step, name, directory / name)
            except OSError as error:
                self._note(error)
                self.say(f"warning: {uri}/{name} could not be fetched: {error}")

    def _note(self, error: Exception) -> None:
        """Remember that it was the store that failed, and not that something is missing or wrong in it."""
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            self.trouble = str(error)

    def _set_aside(self, damaged: list[int]) -> None:
        """Rename damaged checkpoints, now that there is a better one: the run will write these steps again."""
        if self.neighbours.is_keeper:
            for step in damaged:
                directory = self.folder / step_name(step)
                if (directory / MARKER).exists():
                    self.say(
                        f"warning: {directory} is now {set_aside(directory)}; delete it when you have looked at it"
                    )
        self.ranks.barrier()


def _ask(remote: Remote) -> tuple[set[int], set[int]] | OSError:
    """What the store holds, or why that is not known: as a value, so that every rank can be told."""
    try:
        return remote.survey()
    except OSError as error:
        return error


def _local_marker(directory: Path) -> tuple[str, str]:
    """(text, complaint) of a marker on this disk; both empty where there is none."""
    try:
        text = (directory / MARKER).read_text()
        read_marker(text)
    except FileNotFoundError:
        return "", ""
    except (OSError, ValueError) as error:
        return "", f"{directory / MARKER}: {error}"
    return text, ""


def _same(directory: Path, text: str) -> bool:
    return _local_marker(directory)[0] == text

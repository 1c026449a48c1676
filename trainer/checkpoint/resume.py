"""From which checkpoint a run goes on: the newest undamaged one, on disk or in the store. Every rank makes every call.

The ranks share the files out and check the size and sha256 of each. A file that is missing on a disk, or differs from
what was written, is fetched from the store if the store holds the same checkpoint. A checkpoint that stays damaged, or
of which no disk has all files, is renamed with a warning, not deleted, and the next older one is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.outside.documents import MOST_YAML, parse_yaml
from data_pipeline.outside.regular import read_regular
from data_pipeline.store.base import StoreError
from trainer.checkpoint.files import (
    MARKER,
    Files,
    fault,
    marker_of,
    read_marker,
    remove_unfinished,
    set_aside,
    step_name,
    steps_in,
    unlisted,
    write_marker,
)
from trainer.checkpoint.scattered import copied, forked, is_scattered, moved_upload, said
from trainer.checkpoint.shared_disks import SharedDisks
from trainer.checkpoint.upload import Remote
from trainer.config.running import CheckpointConfig
from trainer.distributed import Ranks


@dataclass(frozen=True)
class Trouble:
    """What remains wrong with a checkpoint when its files were fetched as far as possible.

    Attributes:
        faults: in words; none where the checkpoint is whole on every disk.
        scattered: the disks have all files together, and the store, which could make each disk whole, has them not.
    """

    faults: list[str]
    scattered: bool = False


class Candidates:
    """The checkpoints from which a run may go on.

    Attributes:
        local: steps of the checkpoints that are complete on some disk.
        stored: steps of the complete checkpoints in the store; `newest` drops from it the ones that are damaged or
            differ from the checkpoint of the same step on a disk.
        cut_off: steps of the checkpoints in the store that have files but no marker.

    Args:
        folder: the run's checkpoints on this rank's disk.
        remote: the checkpoints in the store; None where `checkpoint.upload` is not set.
        say: prints a line, on any rank.
    """

    def __init__(
        self, ranks: Ranks, shared_disks: SharedDisks, folder: Path, remote: Remote | None, say: Callable[[str], None]
    ) -> None:
        self.ranks, self.shared_disks, self.folder, self.remote, self.say = ranks, shared_disks, folder, remote, say
        self.local: set[int] = set()
        self.stored: set[int] = set()
        self.cut_off: set[int] = set()
        self._store_error = ""  # the last error of the store itself on this rank

    def list_steps(self) -> list[int]:
        """Steps of the complete checkpoints on disk or in the store; ascending.

        Raises:
            ValueError: the store refuses access, or does not exist.
            StoreError: the store does not answer, and no disk holds a checkpoint.
        """
        on_disk = steps_in(self.folder, complete=True) if self.shared_disks.is_keeper else []
        self.local = set().union(*self.ranks.gather(on_disk))
        if self.shared_disks.is_keeper:
            for step in steps_in(self.folder, complete=False):
                self.say(
                    f"warning: {self.folder / step_name(step)} has no {MARKER}: it was cut off while it was written, "
                    "and is not used"
                )
        if self.remote is not None:
            survey = self.ranks.broadcast(_survey(self.remote) if self.ranks.is_main else None)
            if isinstance(survey, OSError):
                self._without_store(survey)
            else:
                self.stored, self.cut_off = survey
        return sorted(self.local | self.stored)

    def newest(self, only: int | None = None) -> Path | None:
        """The newest undamaged checkpoint, complete on every disk; None where `list_steps` gave none.

        Args:
            only: the step of the one checkpoint to look at, where another one would not do; None = all.
        Raises:
            ValueError: no checkpoint can be used, or `checkpoint.upload` names another store than the one which has
                the files that this disk lacks.
            StoreError: no disk holds an undamaged checkpoint, and the store does not answer.
        """
        unusable: dict[int, str] = {}
        faults: list[str] = []
        for step in sorted(self.local | self.stored, reverse=True) if only is None else [only]:
            trouble = self._repair(step)
            if not trouble.faults:
                self._set_aside(unusable)
                return self.folder / step_name(step)
            if trouble.scattered:
                self._check_upload(step, wanted=only is not None)
            unusable[step] = "incomplete" if trouble.scattered else "damaged"
            if self.ranks.is_main:
                for line in trouble.faults:
                    self.say(f"warning: {line}")
                self.say(f"warning: {step_name(step)} is {unusable[step]} and passed over")
            self.stored.discard(step)
            faults += trouble.faults
        if errors := [text for text in self.ranks.gather(self._store_error) if text]:
            raise StoreError(f"no whole checkpoint here, and the store fails: {errors[0]}. Start again when it answers")
        if not unusable:
            return None
        kinds = " or ".join(sorted(set(unusable.values())))
        if only is not None:
            raise ValueError(
                f"checkpoint.resume={only}: that checkpoint is {kinds}: {'; '.join(faults)}. Put the files back, or "
                "name another step; nothing was changed"
            )
        raise ValueError(
            f"every checkpoint in {self.folder} is {kinds}: {'; '.join(faults)}. Put the files back, or rename the "
            "directory to start afresh; nothing was changed"
        )

    def _check_upload(self, step: int, wanted: bool) -> None:
        """Refuse to pass over a scattered checkpoint that only the `checkpoint.upload` of before holds."""
        assert self.remote is not None, "only with checkpoint.upload may the disks be apart"
        before, now = str(self._settings([step]).get("checkpoint", {}).get("upload", "")), self.remote.place
        if before != now:
            raise ValueError(moved_upload(step, before, now, wanted))

    def step_to_go_back_to(self, settings: CheckpointConfig) -> int | None:
        """The step of `checkpoint.resume`; None where the newest checkpoint is to be taken. `list_steps` comes before.

        A checkpoint has the settings of the start that wrote it. So a later one with the same `checkpoint.resume` was
        written after the run had gone back, and the same command goes on from there.

        Raises:
            ValueError: no checkpoint has that step, or the store holds later ones.
        """
        wanted = settings.resume_step
        if wanted is None:
            return None
        steps, run = sorted(self.local | self.stored), self.folder.parent
        later = [step for step in steps if step > wanted]
        if later and self._settings(later[::-1]).get("checkpoint", {}).get("resume") == settings.resume:
            if self.ranks.is_main:
                self.say(
                    f"the run has gone back to step {wanted} before (checkpoint.resume), and goes on from what it has "
                    f"done since; to go back once more, start another run with fork_from={run}@{wanted}"
                )
            return None
        if wanted not in steps:
            there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
            raise ValueError(f"checkpoint.resume={wanted}: {run} has no checkpoint of that step; {there}")
        if stored := sorted(self.stored.intersection(later)):
            other, parent = "set another checkpoint.upload", f"fork_from={run}@{wanted}"
            if self.shared_disks.apart:  # then no disk has all files, and another address has none
                parent = forked(settings.upload, wanted)
                other += f" and {copied(wanted, settings.upload, 'it')}"
            raise ValueError(
                f"checkpoint.resume={wanted}: {settings.upload} holds later checkpoints up to {step_name(stored[-1])}, "
                f"which going back would replace; {other}, or start another run with {parent}"
            )
        return wanted

    def _settings(self, steps: list[int]) -> dict[str, Any]:
        """The settings, by section, in the first of these checkpoints where they can be read; empty where in none."""
        found = {}
        for step in steps if self.ranks.is_main else []:
            try:
                found = parse_yaml(self._config_text(step))
                if isinstance(found, dict):
                    break
            except (OSError, ValueError):
                continue  # a damaged checkpoint is named when it is checked
        settings: dict[str, Any] = self.ranks.broadcast(found if isinstance(found, dict) else {})
        return settings

    def _config_text(self, step: int) -> str:
        file = self.folder / step_name(step) / "config.yaml"
        if file.is_file() or self.remote is None:
            return read_regular(file, MOST_YAML).decode()
        return self.remote.store.read(f"{step_name(step)}/config.yaml", 0, MOST_YAML).decode()

    def _without_store(self, error: OSError) -> None:
        """Go on without the store only if a disk holds a checkpoint: it is the newest, because uploads come later.

        Without one, a fresh start could overwrite a run whose checkpoints are in the store.
        """
        if isinstance(error, PermissionError | FileNotFoundError):
            raise ValueError(f"checkpoint.upload cannot be read: {error}") from error
        if not self.local:
            raise StoreError(f"no checkpoint here, and whether the store has one is not known: {error}") from error
        if self.ranks.is_main:
            self.say(f"warning: checkpoint.upload cannot be read: {error}. Going on from what is here")

    def _repair(self, step: int) -> Trouble:
        """Check a checkpoint on every disk, and fetch its missing and damaged files. Returns what remains wrong."""
        directory = self.folder / step_name(step)
        text, in_store, marker_faults = self._marker(step, directory)
        if marker_faults:
            return Trouble(marker_faults)
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
            return Trouble([said(step, faults, self.remote.place)], scattered=True)
        return Trouble(remaining)

    def _marker(self, step: int, directory: Path) -> tuple[str, bool, list[str]]:
        """The marker's text, whether the store holds the same checkpoint, and the faults if no marker can be read."""
        local = self.ranks.gather(_local_marker(directory) if self.shared_disks.is_keeper else ("", ""))
        stored = self.ranks.broadcast(self._stored_marker(step) if self.ranks.is_main else None)
        texts = [text for text, _ in [*local, stored] if text]
        if not texts:
            return "", False, sorted({marker_fault for _, marker_fault in [*local, stored] if marker_fault})
        same = bool(stored[0]) and read_marker(stored[0]) == read_marker(texts[0])
        if not same:  # then the checkpoint on the disk will be uploaded
            self.stored.discard(step)
        return texts[0], same, []

    def _stored_marker(self, step: int) -> tuple[str, str]:
        """The text and the fault of the marker in the store; both empty where the store has none."""
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
            self._store_error = str(error)

    def _set_aside(self, unusable: dict[int, str]) -> None:
        """Rename these checkpoints, because the run goes on from an older one and will write their steps again."""
        if self.shared_disks.is_keeper:
            for step, why in unusable.items():
                directory = self.folder / step_name(step)
                if (directory / MARKER).exists():
                    aside = set_aside(directory, why)
                    self.say(f"warning: {directory} is now {aside}; delete it when you have looked at it")
        self.ranks.barrier()


def _survey(remote: Remote) -> tuple[set[int], set[int]] | OSError:
    """`Remote.survey`, with an error returned and not raised, so that it can be sent to every rank."""
    try:
        return remote.survey()
    except OSError as error:
        return error


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

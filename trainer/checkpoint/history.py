"""What a run's directory says of its settings. They are written when a step has been done with them, never before.

    OUTPUT/config.yaml             the settings of the last step
    OUTPUT/config_history.jsonl    one line for each start that changed settings: the first step with them, the time,
                                   and the changes; a fork's first line says where it comes from

The settings of the steps before are those of the checkpoint from which the run goes on. So a run that was killed after
a change and is started again with other settings has a history of the steps that it goes on from, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.outside.documents import read_yaml_mapping
from data_pipeline.store.files import atomic_file
from trainer.checkpoint.exports import set_exports_aside
from trainer.checkpoint.same_run import flatten
from trainer.config.loader import default_values, settings_of, to_yaml
from trainer.config.run import RunConfig
from trainer.telemetry.journal import Journal

Changes = dict[str, tuple[Any, Any]]
"""Dotted key -> its value in the steps before, and its value now."""


def changes_since(checkpoint: Path, config: RunConfig) -> Changes:
    """The settings that differ from those of a checkpoint.

    A setting that is newer than the checkpoint counts as having had its present default.
    """
    saved = default_values(type(config)) | flatten(read_yaml_mapping(checkpoint / "config.yaml"))
    now = settings_of(config)
    return {key: (saved.get(key), value) for key, value in now.items() if saved.get(key) != value}


def described(changes: Changes) -> str:
    """The changes in one line."""
    return ", ".join(f"{key}: {before} -> {now}" for key, (before, now) in changes.items())


class History:
    """Writes the settings of a run down. Every rank makes every call; the main rank writes.

    Args:
        writes: whether this rank is the main one.
        say: prints a line.
    """

    def __init__(self, config: RunConfig, writes: bool, say: Callable[[str], None]) -> None:
        self.config, self.writes, self.say = config, writes, say
        self.output = Path(config.output)
        self.journal = Journal(self.output / "config_history.jsonl")
        self._changes: Changes = {}
        self._forked_from: Mapping[str, Any] | None = None
        self._begun = False

    def begin(self, step: int, changes: Changes, forked_from: Mapping[str, Any] | None = None) -> None:
        """Say what has changed, at the start or after a rollback. Nothing is written before the next step.

        Args:
            step: steps done before.
            changes: since the run's own checkpoint from which it goes on; empty where there is none.
            forked_from: where the run comes from, with its changes, if it is a fork that has done no step of its own.
        """
        self._changes, self._forked_from, self._begun = changes, forked_from, False
        every = changes if forked_from is None else {**forked_from["changed"], **changes}
        shown = {key: change for key, change in every.items() if key not in ("output", "fork_from")}
        if step >= self.config.steps:
            if shown:
                self.say(
                    f"warning: the run has finished its {step} steps, so these settings had no effect, and its files "
                    f"stay as they are: {described(shown)}. Raise steps to train on, or fork the run "
                    f"(fork_from={self.output} output=...)"
                )
            return
        if shown:
            self.say(f"settings that change after step {step}: {described(shown)}")
        objective = [key for key in shown if key.startswith(self.config.objective)]
        if objective:
            self.say(
                f"warning: {', '.join(objective)} changed what is learnt: losses up to step {step} and after it do "
                "not compare"
            )

    def stepped(self, step: int) -> None:
        """Note that `step` steps are done; the first call of a start writes the settings down."""
        if self._begun or not self.writes:
            return
        self._begun = True
        for old, new in set_exports_aside(self.output):
            self.say(f"{old} is now {new}, because the run has gone on")
        with atomic_file(self.output / "config.yaml") as temporary:
            temporary.write_text(to_yaml(self.config), encoding="utf-8")
        if self.journal.path.is_file():
            self.journal.set_back(step - 1)
            self.journal.close()
        if self._changes or self._forked_from is not None:
            self.journal.append(self._row(step))

    def _row(self, step: int) -> dict[str, Any]:
        row = {"step": step, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        if self._forked_from is not None:
            row["forked_from"] = dict(self._forked_from)
        return row | {"changed": {key: list(change) for key, change in self._changes.items()}}

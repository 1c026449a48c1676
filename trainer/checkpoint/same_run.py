"""The settings that a run must keep when it is resumed. All other settings may change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.outside.documents import read_yaml_mapping
from trainer.checkpoint.files import step_of
from trainer.config.loader import default_values, settings_of
from trainer.config.run import RunConfig

NETWORKS_AND_DATA = ("model.", "discriminator.", "gan.weight", "data.")
"""Keys that begin so make a run another one, finished or not; gan.weight from or to 0 is a network more or less."""


def check_same_run(directory: Path, config: RunConfig) -> None:
    """Refuse to go on from a checkpoint of another run.

    A finished run is not loaded with settings that would have to be the checkpoint's either; the message says then that
    they have no effect, as a line says of settings that may change (`history.py`).

    Raises:
        ValueError: the configuration differs in settings that must stay; the message names each of them.
    """
    # A setting that is newer than the checkpoint counts as having had its present default.
    saved = default_values(type(config)) | flatten(read_yaml_mapping(directory / "config.yaml"))
    now = settings_of(config)
    then, today = config.identity(saved), config.identity(now)
    differ = [key for key in sorted(then.keys() | today.keys()) if then.get(key) != today.get(key)]
    if differ:
        shown = [key for key in differ if saved.get(key) != now.get(key)]
        changes = ", ".join(f"{key}: {saved.get(key)} -> {now.get(key)}" for key in shown)
        finished = step_of(directory.name) == config.steps
        if finished and not any(key.startswith(NETWORKS_AND_DATA) for key in shown):
            found = f"the run of {directory} has finished its {config.steps} steps, so these settings have no effect"
        else:
            found = f"{directory} belongs to a run with other settings"
        raise ValueError(
            f"{found} ({changes}); set them back, or choose another "
            "output (fork_from=RUN begins it with the state of this one, where the networks are the same, and "
            "init_from=DIRECTORY with the weights of an exported model)"
        )


def unused_init_from(directory: Path, config: RunConfig) -> str:
    """A warning that `init_from` has no effect, if it has changed since the checkpoint; else an empty text."""
    before = read_yaml_mapping(directory / "config.yaml")["init_from"]
    if config.init_from in ("", before):
        return ""
    return (
        f"warning: init_from={config.init_from} is not looked at, because the run goes on from {directory}; choose "
        "another output to begin from it"
    )


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """A nested dictionary as a flat one with dotted keys."""
    return dict(_items(tree, ""))


def _items(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

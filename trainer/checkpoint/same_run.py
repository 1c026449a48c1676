"""What a run is: the settings that may not change between its parts. The rest may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from trainer.config.loader import default_values, to_yaml
from trainer.config.train import TrainConfig

# The networks and the order of the data.
FIXED = ("seed", "freeze", "model.", "discriminator.", "data.")
FREE_DATA = (
    "data.shards",
    "data.workers",
    "data.prefetch",
    "data.timeout_s",
    "data.cache_dir",
    "data.cache_bytes",
    "data.max_bad_samples",
)


def check_same_run(directory: Path, config: TrainConfig) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        ValueError: it names every setting that differs.
    """
    # A setting that did not exist when the checkpoint was written had what is its default now.
    saved = default_values(TrainConfig) | flatten(yaml.safe_load((directory / "config.yaml").read_text()))
    now = flatten(yaml.safe_load(to_yaml(config)))
    differ = [key for key in sorted(saved.keys() | now.keys()) if is_fixed(key) and saved.get(key) != now.get(key)]
    if (config.gan.weight > 0) != (saved["gan.weight"] > 0):
        differ.append("gan.weight")
    if differ:
        changes = ", ".join(f"{key}: {saved.get(key)} -> {now.get(key)}" for key in differ)
        raise ValueError(
            f"{directory} belongs to a run with other settings ({changes}); set them back, or choose another "
            "output (init_from=DIRECTORY starts it from the weights of an exported model)"
        )


def not_looked_at(directory: Path, config: TrainConfig) -> str:
    """A line about `init_from`, where it has changed since the checkpoint; else nothing."""
    before = yaml.safe_load((directory / "config.yaml").read_text())["init_from"]
    if config.init_from in ("", before):
        return ""
    return (
        f"warning: init_from={config.init_from} is not looked at, because the run goes on from {directory}; choose "
        "another output to begin from it"
    )


def is_fixed(key: str) -> bool:
    """Whether a setting belongs to what a run is, so that it may not change when it is resumed."""
    return key.startswith(FIXED) and key not in FREE_DATA


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as dotted keys."""
    return dict(_items(tree, ""))


def _items(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

"""A run that begins from a checkpoint of another one: `fork_from=RUN` or `fork_from=RUN@STEP`.

Weights, optimizers, averages, random generators, the number of steps and with it every schedule go along, and so does
the position in the data where these are the same. A fork saves a checkpoint of its own before its first step. From then
on it is a run like any other, and needs its parent no longer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.outside.documents import read_yaml_mapping
from data_pipeline.read.loader import Position
from trainer.checkpoint.files import fault, marker_of, read_marker, read_state, unlisted
from trainer.checkpoint.history import Changes, changes_since
from trainer.checkpoint.lookup import find_checkpoint
from trainer.checkpoint.same_run import flatten
from trainer.config.loader import default_values, settings_of
from trainer.config.run import RunConfig
from trainer.distributed import Ranks
from trainer.join.equality import check_equal, on_all
from trainer.method import Loader


@dataclass(frozen=True)
class Parent:
    """The checkpoint that a fork begins from.

    Attributes:
        directory: the checkpoint.
        state: its state.json.
        sha256: of its marker, which lists the digest of every file.
        changes: the settings that differ between the two runs.
    """

    directory: Path
    state: dict[str, Any]
    sha256: str
    changes: Changes

    @property
    def step(self) -> int:
        """Steps that the parent had done."""
        return int(self.state["step"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the fork's checkpoints, its history and its models say of where it comes from."""
        facts: dict[str, Any] = {"checkpoint": str(self.directory), "step": self.step, "sha256": self.sha256}
        before = {"forked_from": self.state["forked_from"]} if "forked_from" in self.state else {}
        return facts | {"changed": {key: list(change) for key, change in self.changes.items()}} | before


def find_parent(config: RunConfig, ranks: Ranks) -> Parent:
    """The checkpoint of `fork_from`, whole and the same on every node. Every rank calls it.

    Raises:
        ValueError: there is none, it is damaged, or a fork with these settings is not possible.
        NotOneRun: the nodes hold different checkpoints there.
    """
    found = ranks.broadcast(_found(config) if ranks.is_main else None)  # the parent may save while ranks look
    if isinstance(found, ValueError):
        raise found
    parent = on_all(lambda: read_parent(found, config, ranks.rank, ranks.world_size), ranks.gather)
    check_equal({"the checkpoint of fork_from": parent.sha256}, ranks.gather)
    return parent


def parent_of(config: RunConfig) -> Path:
    """The checkpoint that `fork_from` names. Raises ValueError where there is none."""
    try:
        return find_checkpoint(*config.fork_place).absolute()
    except ValueError as error:
        raise ValueError(f"fork_from={config.fork_from}: {error}") from error


def _found(config: RunConfig) -> Path | ValueError:
    try:
        return parent_of(config)
    except ValueError as error:
        return error


def check_is_fork(config: RunConfig, checkpoint: Path) -> None:
    """Refuse `fork_from` for a run that goes on, unless it is the fork of that run.

    Raises:
        ValueError: the run of `checkpoint` is no fork, or one of another run or step; or `init_from` is new.
    """
    if not config.fork_from:
        return
    _check_one_origin(config, checkpoint)
    place, step = config.fork_place
    facts: dict[str, Any] | None = read_state(checkpoint).get("forked_from")
    origin = Path(facts["checkpoint"]) if facts is not None else None
    same_run = origin is not None and place.absolute() in (origin, *origin.parents)
    if facts is None or not same_run or step not in (None, facts["step"]):
        comes = f"comes from step {facts['step']} of {origin}" if facts is not None else "is no fork"
        raise ValueError(
            f"fork_from={config.fork_from} has no effect, because output={config.output} holds a run that {comes}; "
            "choose another output to fork, or leave fork_from away to go on"
        )


def _check_one_origin(config: RunConfig, checkpoint: Path) -> None:
    """Refuse `init_from` beside `fork_from`, unless the checkpoint's own run was begun with the same `init_from`.

    A fork of a run that began with other weights may repeat that run's configuration.

    Raises:
        ValueError: naming both keys.
    """
    recorded = read_yaml_mapping(checkpoint / "config.yaml")["init_from"]
    if config.init_from not in ("", recorded):
        raise ValueError(
            f"fork_from={config.fork_from} and init_from={config.init_from} are two origins: a fork has the weights of "
            "its parent; leave one of them away"
        )


def _check_same_method(
    config: RunConfig, directory: Path, recorded: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Refuse a parent whose networks are not those of this method.

    Each method has sections of settings that no other has, such as those of its networks. A section that one of the two
    lacks says nothing, because the parent may be of an older program.

    Args:
        recorded: the settings of the parent by their dotted keys.
        defaults: those of a run like the fork.
    Raises:
        ValueError: the parent has sections that the fork lacks, and the other way round.
    """
    theirs, ours = ({key.partition(".")[0] for key in keys if "." in key} for keys in (recorded, defaults))
    if theirs - ours and ours - theirs:
        raise ValueError(
            f"fork_from={config.fork_from}: {directory} is of a training of something else, with settings of "
            f"{', '.join(sorted(theirs - ours))} and none of {', '.join(sorted(ours - theirs))}; name a run of "
            "the same script"
        )


def read_parent(directory: Path, config: RunConfig, rank: int, ranks: int) -> Parent:
    """The parent; its files are checked, of several ranks by each its share, and so are the fork's settings.

    Raises:
        ValueError: a file is damaged, or a fork with these settings is not possible.
    """
    try:
        marker = marker_of(directory)
    except FileNotFoundError:
        raise ValueError(
            f"fork_from={config.fork_from}: {directory} is not on every node; put it on storage that all of them see"
        ) from None
    files = read_marker(marker)
    for complaint in unlisted(directory, files):
        raise ValueError(f"fork_from={config.fork_from}: {complaint}, or name another step with RUN@STEP")
    for name in sorted(files)[rank::ranks]:
        if complaint := fault(directory / name, files[name]):
            raise ValueError(f"fork_from={config.fork_from}: {complaint}; name another step with RUN@STEP")
    _check_one_origin(config, directory)
    state = read_state(directory)
    recorded, defaults = flatten(read_yaml_mapping(directory / "config.yaml")), default_values(type(config))
    _check_same_method(config, directory, recorded, defaults)
    saved = defaults | recorded
    if state["step"] >= config.steps:
        raise ValueError(
            f"steps={config.steps} leaves a fork of {directory} nothing to do, because steps count from the beginning "
            f"of its parent; set steps above {state['step']}"
        )
    config.check_fork(saved, settings_of(config), state["step"])
    return Parent(directory, state, hashlib.sha256(marker.encode()).hexdigest(), changes_since(directory, config))


def position_of_fork(parent: Parent, saved: Position, loader: Loader[Any]) -> tuple[Position, str]:
    """Where a fork begins to read, and a line that says so.

    Returns:
        The parent's position where the data, their order and the global batch are the same; else their beginning.
    """
    if "data.global_batch" in parent.changes:
        return Position(), "the fork reads global batches of another size, so it begins at epoch 0 of them"
    try:
        grown = loader.continue_from(parent.state["order"], saved)
    except ValueError:  # which says that it is for the run that saved the position
        return Position(), "the fork reads other data, or in another order, so it begins at epoch 0 of them"
    place = f"after {saved.consumed} samples of epoch {saved.epoch}"
    return saved, f"the fork goes on in the data where its parent was: {place}" + (f"; {grown}" if grown else "")

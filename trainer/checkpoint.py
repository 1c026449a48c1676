"""Checkpoints that are complete or absent.

    OUTPUT/checkpoints/step-00001000/
        generator/ discriminator/   DeepSpeed's files of each engine
        method.pt ema-00000.pt ...  the method's own state, and each rank's shard of the moving average
        rng-00000.pt ...            the random generators of each rank
        state.json config.yaml      step, loader position, ranks, ZeRO stage; the resolved configuration
        COMPLETE                    written last, after every file has reached the disk: their sizes and sha256

A directory without COMPLETE does not exist for the reader, and is removed by the next save. The directory must be on
storage that every rank sees.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import yaml

from data_pipeline.dataset import ClipLoader, Position
from trainer.config import Resume, TrainConfig
from trainer.config_loader import to_yaml
from trainer.distributed import Ranks, rng_state, set_rng_state

MARKER = "COMPLETE"
FORMAT = 1

# What may not change between the parts of one run: the networks and the order of the data. The rest may.
FIXED = ("seed", "model.", "discriminator.", "data.")
FREE_DATA = (
    "data.shards",
    "data.workers",
    "data.prefetch",
    "data.timeout_s",
    "data.cache_dir",
    "data.cache_bytes",
    "data.max_bad_samples",
)


class Stateful(Protocol):
    """What a checkpoint holds besides the loop's own state."""

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None: ...


class Checkpoints:
    """The checkpoints of one run. Every rank makes every call."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.directory = Path(config.output) / "checkpoints"

    # ---- writing --------------------------------------------------------------------------------------------------

    def save(self, step: int, position: Position, method: Stateful, loader: ClipLoader) -> Path:
        """Write the state after `step` steps; when this returns, it is complete on disk and old ones are gone."""
        directory = self.directory / step_name(step)
        if self.ranks.is_main:
            for leftover in self._directories(complete=False):
                shutil.rmtree(leftover)
            if directory.exists():  # of a later part of the run, from before it was set back
                remove(directory)
            directory.mkdir(parents=True)
        self.ranks.barrier()
        method.save(directory)
        torch.save(rng_state(), directory / f"rng-{self.ranks.rank:05d}.pt")
        if self.ranks.is_main:
            (directory / "config.yaml").write_text(to_yaml(self.config))
            (directory / "state.json").write_text(
                json.dumps(self._state(step, position) | {"order": loader.identity}, indent=1)
            )
        self.ranks.barrier()
        files = self._digest_together(directory)
        if self.ranks.is_main:
            _write_last(directory / MARKER, json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
            for old in self._directories(complete=True)[: -self.config.checkpoint.keep]:
                remove(old)
        self.ranks.barrier()
        return directory

    def _state(self, step: int, position: Position) -> dict[str, Any]:
        return {
            "step": step,
            "epoch": position.epoch,
            "consumed": position.consumed,
            "ranks": self.ranks.world_size,
            "zero_stage": self.config.zero.stage,
            "zero_discriminator_stage": self.config.zero.discriminator_stage,
            "precision": self.config.precision.value,
        }

    def _digest_together(self, directory: Path) -> dict[str, dict[str, Any]]:
        """Size and sha256 of every file, each flushed to disk; the files are divided among the ranks."""
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        mine = {
            path.relative_to(directory).as_posix(): _flush_and_digest(path)
            for path in files[self.ranks.rank :: self.ranks.world_size]
        }
        parts: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(parts, mine, group=self.ranks.control)
        return {name: part[name] for part in parts for name in sorted(part)}

    # ---- reading --------------------------------------------------------------------------------------------------

    def newest(self) -> Path | None:
        """The complete checkpoint with the highest step, or None; the same on every rank.

        Raises:
            ValueError: checkpoint.resume=never, and there is one.
        """
        found: list[Any] = [None]
        if self.ranks.is_main:
            complete = self._directories(complete=True)
            found = [str(complete[-1])] if complete else [None]
        dist.broadcast_object_list(found, src=0, group=self.ranks.control)
        if found[0] is None:
            return None
        if self.config.checkpoint.resume is Resume.never:
            raise ValueError(
                f"{found[0]} exists and checkpoint.resume=never; choose another output, remove it, or set "
                "checkpoint.resume=auto to go on from it"
            )
        return Path(found[0])

    def check(self, directory: Path, loader: ClipLoader) -> None:
        """Refuse to go on from `directory` where that could not give the same run.

        Raises:
            ValueError: it is damaged, or of another model, data order, dataset, number of ranks or ZeRO stage.
        """
        self._check_sizes(directory)
        state = json.loads((directory / "state.json").read_text())
        self._check_same_run(directory, state)
        loader.check_identity(state["order"])

    def load(self, directory: Path, method: Stateful) -> tuple[int, Position]:
        """Bring the method and the random generators to where `directory`, which `check` let pass, was saved.

        Returns:
            Steps done and the loader's position.
        """
        state = json.loads((directory / "state.json").read_text())
        method.load(directory)
        set_rng_state(torch.load(directory / f"rng-{self.ranks.rank:05d}.pt", weights_only=True))
        self.ranks.barrier()
        return state["step"], Position(state["epoch"], state["consumed"])

    def _check_sizes(self, directory: Path) -> None:
        files = json.loads((directory / MARKER).read_text())["files"]
        for name, entry in files.items():
            path = directory / name
            size = path.stat().st_size if path.is_file() else -1
            if size != entry["bytes"]:
                raise ValueError(
                    f"checkpoint file {path} has {max(size, 0)} bytes, but {entry['bytes']} were written; remove "
                    f"{directory} to go on from the checkpoint before it"
                )

    def _check_same_run(self, directory: Path, state: dict[str, Any]) -> None:
        saved = flatten(yaml.safe_load((directory / "config.yaml").read_text()))
        now = flatten(yaml.safe_load(to_yaml(self.config)))
        differ = [key for key in sorted(saved.keys() | now.keys()) if is_fixed(key) and saved.get(key) != now.get(key)]
        if (self.config.gan.weight > 0) != (saved["gan.weight"] > 0):
            differ.append("gan.weight")
        if differ:
            changes = ", ".join(f"{key}: {saved.get(key)} -> {now.get(key)}" for key in differ)
            raise ValueError(
                f"{directory} belongs to a run with other settings ({changes}); set them back, or choose another "
                "output (init_from=DIRECTORY starts it from the weights of an exported model)"
            )
        here = self._state(0, Position(0, 0))
        for key, setting in (
            ("ranks", "start that number of ranks"),
            ("zero_stage", "set zero.stage to it"),
            ("zero_discriminator_stage", "set zero.discriminator_stage to it"),
            ("precision", "set precision to it"),
        ):
            if state[key] != here[key]:
                raise ValueError(f"{directory} was saved with {key}={state[key]}, not {here[key]}; {setting}")

    def _directories(self, complete: bool) -> list[Path]:
        """This run's checkpoint directories with or without the marker, by step."""
        if not self.directory.is_dir():
            return []
        found = sorted(path for path in self.directory.iterdir() if path.name.startswith("step-") and path.is_dir())
        return [path for path in found if is_complete(path) is complete]


def step_name(step: int) -> str:
    """Name of the checkpoint directory of a step; sorts by step."""
    return f"step-{step:08d}"


def is_complete(directory: Path) -> bool:
    """Whether the marker is there."""
    return (directory / MARKER).is_file()


def remove(directory: Path) -> None:
    """Delete a checkpoint, the marker first: a removal that is cut short must not leave what looks complete."""
    (directory / MARKER).unlink(missing_ok=True)
    shutil.rmtree(directory)


def is_fixed(key: str) -> bool:
    """Whether a setting belongs to what a run is, so that it may not change when it is resumed."""
    return key.startswith(FIXED) and key not in FREE_DATA


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in _items(tree, prefix):
        flat[key] = value
    return flat


def _items(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _flush_and_digest(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _write_last(path: Path, text: str) -> None:
    """Appear whole or not at all, after everything else in the directory."""
    for directory in {item.parent for item in path.parent.rglob("*")} | {path.parent, path.parent.parent}:
        _flush_directory(directory)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    _flush_directory(path.parent)


def _flush_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

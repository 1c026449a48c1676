"""Checkpoints of something that is quick to save: a number, in a file in a folder, as DeepSpeed's are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch

from data_pipeline.read.loader import Position
from tests.trainer.cases import tiny_config
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.method import Loader, Method


class Number:
    """State of one rank: the part of a method that a checkpoint looks at."""

    layout: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, value: int = 0, rank: int = 0) -> None:
        self.value, self.rank = value, rank

    saved_bytes = 8

    def save(self, directory: Path) -> None:
        (directory / "generator").mkdir(exist_ok=True)
        torch.save(torch.tensor(self.value), directory / "generator" / f"rank-{self.rank}.pt")

    def load(self, directory: Path) -> None:
        self.value = int(torch.load(directory / "generator" / f"rank-{self.rank}.pt", weights_only=True))


class Order:
    """The part of the loader that a checkpoint looks at."""

    identity: dict[str, Any] = {}  # noqa: RUF012
    shared_bytes = 0

    def continue_from(self, saved: dict[str, Any], position: Position) -> str:
        assert saved == {}
        return ""


LOADER = cast(Loader[Any], Order())


@cache
def _config(settings: tuple[str, ...]) -> TrainConfig:
    return tiny_config("unused", *settings)


def opened(ranks: Ranks, output: Path, settings: tuple[str, ...], say: Callable[[str], None] = print) -> Checkpoints:
    """The checkpoints of a run, as a newly started process sees them; `settings` are settings."""
    return Checkpoints(replace(_config(settings), output=str(output)), ranks, say)


def save(checkpoints: Checkpoints, *steps: int) -> None:
    """Save each of these steps to the end; the state is the step's number, plus the rank's in hundreds."""
    for step in steps:
        rank = checkpoints.ranks.rank
        checkpoints.save(step, Position(0, 4 * step), cast(Method[Any], Number(step + 100 * rank, rank)), LOADER)
        checkpoints.settle()


def resumed(checkpoints: Checkpoints) -> int | None:
    """The step that a run goes on from, after its state was loaded and found right."""
    newest = checkpoints.newest()
    if newest is None:
        return None
    checkpoints.check(newest, LOADER)
    number = Number(rank=checkpoints.ranks.rank)
    step, position = checkpoints.load(newest, cast(Method[Any], number))
    assert number.value == step + 100 * number.rank
    assert position == Position(0, 4 * step)
    return step


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])

"""Files of `torch.save` in a checkpoint are opened without code: tensors, plain values, and the few names of DeepSpeed.

`load_saved` opens a file by itself. `no_code` guards a load that DeepSpeed does by itself: torch is told by its public
variable TORCH_FORCE_WEIGHTS_ONLY_LOAD to open files in the same way, whatever DeepSpeed asks for, and with the same
names. So a file that is replaced between the two is no way around the first.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data_pipeline.outside.regular import check_regular, open_regular

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FORBID = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Torch refuses to load anything while both variables are set."""

NAMES = (
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
"""The classes that DeepSpeed 0.19 writes into the states of engines. None of them runs anything when it is made."""


class Inert:
    """Replaces a DeepSpeed object of a file: it has the object's attributes and none of its code."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


_STAND_INS: list[Any] = [(int if name.endswith("Enum") else Inert, name) for name in NAMES]


def load_saved(file: Path, *, mapped: bool = True) -> Any:
    """Open a file of `torch.save` without running code in it. Neither DeepSpeed nor a GPU is needed.

    Args:
        file: as torch writes it today, an archive whose members are not compressed.
        mapped: its tensors stay on the disk until they are used.
    Raises:
        ValueError: it is missing or damaged, no regular file, or holds objects of other classes.
    """
    try:
        check_regular(file)
        _check_archive(file)
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"checkpoint file {file} not found; use another checkpoint") from None
    except Exception as error:
        raise ValueError(
            f"checkpoint file {file} holds no state of an engine ({_reason(error)}); nothing in it was run: use "
            "another checkpoint"
        ) from error


def _check_archive(file: Path) -> None:
    """Refuse an archive whose members are compressed, because few bytes could stand for a whole memory."""
    with open_regular(file) as opened, zipfile.ZipFile(opened) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > member.compress_size:
                raise ValueError(f"its member {member.filename!r} is compressed, and torch compresses none")


def _reason(error: Exception) -> str:
    """The line of torch's message that says what is wrong; torch's advice to run the code anyway is left out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), None)
    if named is None and lines and lines[0].startswith("Weights only load failed"):
        named = "it holds more than tensors and plain values"
    return (named or (lines[0] if lines else type(error).__name__)).removeprefix("WeightsUnpickler error: ")[:200]


@contextlib.contextmanager
def no_code() -> Iterator[None]:
    """Inside, whatever calls `torch.load` in this process opens files as `load_saved` does, with DeepSpeed's classes.

    It changes the environment of the process, so no other thread may load a file of another kind meanwhile.
    """
    kept = {name: os.environ.get(name) for name in (FORCE, FORBID)}
    os.environ[FORCE] = "1"
    os.environ.pop(FORBID, None)
    try:
        with torch.serialization.safe_globals([_class(name) for name in NAMES]):
            yield
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _class(name: str) -> Any:
    module, _, member = name.rpartition(".")
    return getattr(importlib.import_module(module), member)

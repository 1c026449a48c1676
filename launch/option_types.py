"""The values that options take, refused by argparse where they are out of range or given twice."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.store.open import plain_place, without_secrets
from trainer.config.values import LARGEST

MOST_DIGITS = 100
"""The most digits of a number, far more than any option needs. Python refuses to read thousands of digits."""


class Once(argparse.Action):
    """Stores an option's value; a second one is refused, because it would silently take the first one's place."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given = namespace.__dict__.setdefault("given", set())
        if self.dest in given:
            parser.error(f"argument {option}: is given twice; leave one of the two away")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def whole_number(least: int) -> Callable[[str], int]:
    """The `type` of an option that takes a whole number from `least` on."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[-+]?[0-9]+", text) or len(text) > MOST_DIGITS or not least <= int(text) <= LARGEST:
            most = f" and at most {LARGEST}" if len(text) >= len(str(LARGEST)) else ""
            raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least {least}{most}")
        return int(text)

    return read


def _number(text: str) -> float:
    """The number that a text says, NaN where it says none: that lies in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def positive_number(text: str) -> float:
    """The `type` of an option that takes a number above 0; `inf` is one."""
    number = _number(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return number


def not_negative(text: str) -> float:
    """The `type` of an option that takes a finite number of at least 0."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a finite number of at least 0")
    return number


def share(text: str) -> float:
    """The `type` of an option that takes a share of a whole, above 0 and at most 1."""
    number = positive_number(text)
    if not 1e-6 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1, such as 0.4")
    return number


def seconds(text: str) -> float:
    """The `type` of an option that takes a finite number of seconds, 0 or more."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a number of seconds, 0 or more")
    return number


def place(text: str) -> str:
    """The `type` of an option that takes a path or the address of a store; `file:///path` becomes the path."""
    try:
        return plain_place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path(text: str) -> Path:
    """The `type` of an option that takes a file or folder of this machine."""
    found = place(text)
    if "://" in found:
        raise argparse.ArgumentTypeError(f"{without_secrets(found)} must be a file or folder of this machine")
    return Path(found)


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option `--device` of scripts that put a model on a device."""
    parser.add_argument(
        "--device", default="auto", type=_device, help="cpu, cuda, cuda:N, or auto: a GPU where the machine has one"
    )


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text} must be auto, cpu, cuda or cuda:N")
    return text

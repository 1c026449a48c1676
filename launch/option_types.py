"""The values that options take, refused by argparse where they are out of range or given twice."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any


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
        if not re.fullmatch(r"[-+]?\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least {least}")
        return int(text)

    return read


def positive_number(text: str) -> float:
    """The `type` of an option that takes a number above 0; `inf` is one."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return number


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option `--device` of scripts that put a model on a device."""
    parser.add_argument(
        "--device", default="auto", type=_device, help="cpu, cuda, cuda:N, or auto: a GPU if there is one"
    )


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text} must be auto, cpu, cuda or cuda:N")
    return text

"""Holds a process at a named call. Python imports this file by itself wherever its folder is on PYTHONPATH.

    HOLD_AT=trainer.engine.engine:Engine.backward   module and function
    HOLD_CALL=3                               which of the calls in a process
    HOLD_IN=DIRECTORY                         a file named like the rank appears in it; the process goes on with `go`

So a test can kill at a moment of its choosing, and the code under test knows nothing of it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def held(function: Callable[..., Any], call: int, folder: Path) -> Callable[..., Any]:
    """The function, which waits before its n-th call begins."""
    calls = itertools.count(1)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            (folder / os.environ["RANK"]).touch()
            while not (folder / "go").exists():
                time.sleep(0.01)
        return function(*args, **kwargs)

    return wrapper


class Finder(importlib.abc.MetaPathFinder):
    """Loads one module as usual, then wraps a function in it."""

    def __init__(self, module: str, function: str) -> None:
        self.module, self.function = module, function

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            *owners, name = self.function.split(".")
            owner = functools.reduce(getattr, owners, module)
            wrapped = held(getattr(owner, name), int(os.environ["HOLD_CALL"]), Path(os.environ["HOLD_IN"]))
            setattr(owner, name, wrapped)

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]
        return spec


if "RANK" in os.environ and "HOLD_AT" in os.environ:
    sys.meta_path.insert(0, Finder(*os.environ["HOLD_AT"].split(":")))

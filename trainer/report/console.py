"""A count that stays on one line of a terminal, and is silent where the output goes to a file."""

from __future__ import annotations

import sys
from collections.abc import Callable


def counter(what: str) -> Callable[[int], None]:
    """A progress callback that shows `N what` on standard error; the next line printed there overwrites it."""

    def show(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{done} {what}\r", end="", file=sys.stderr, flush=True)

    return show

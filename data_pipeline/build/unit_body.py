"""What the driver runs: the body of a unit, and what the body reports.

A body is one of two kinds:

* a function `body(job, unit) -> report`, which Ray runs as a task;
* a class with `__init__(job)` and `run(unit) -> report`, for work that holds state, such as a model on a GPU. Its
  instances live in Ray actors, and each does one unit after another.

A body must be able to do the same unit again with the same result, because a process may die after its last write.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, TypeVar

Job = TypeVar("Job")


class Report(Protocol):
    """What a body returns about a unit that it has finished. Must be small: it travels through Ray."""

    @property
    def rows(self) -> int:
        """Source rows that the unit accounts for."""

    @property
    def items(self) -> int:
        """Clips, latents or whatever else the unit has committed."""

    @property
    def bytes(self) -> int:
        """Bytes that these items take on the store."""

    @property
    def fates(self) -> Mapping[str, int]:
        """How many of the rows ended how; the numbers add up to `rows`."""


class GivenBack(Exception):
    """A body cannot do any unit on its machine now; another machine may, or this one later. No unit is at fault.

    Args:
        detail: what is wrong, for people.
        host: name of the machine, as Ray knows it.
    """

    def __init__(self, detail: str, host: str = "") -> None:
        super().__init__(detail)
        self.host = host or socket.gethostname()

    def __reduce__(self) -> tuple[type[GivenBack], tuple[str, str]]:
        return GivenBack, (str(self), self.host)


class StatefulBody(Protocol):
    """An instance of a body that keeps something from unit to unit, in a process of its own."""

    def run(self, unit: int) -> Report:
        """Do one unit. What this raises counts as a failure of the unit, and the process is replaced."""


Body: TypeAlias = Callable[[Job, int], Report] | Callable[[Job], StatefulBody]  # a function, or a class

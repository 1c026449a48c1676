"""The progress line of a long job: one that rewrites itself on a terminal, plain lines every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from data_pipeline.outside.console import write_over


class Progress:
    """Counts what this run has done and estimates from it how long the rest takes.

    Args:
        units: units of the whole plan.
        done: units that were committed before this run.
        rows: source rows of the units that this run has to do.
        interval_s: seconds between lines when the stream is no terminal.
        items_name: what a unit makes, in the plural: "clips", for instance.
        stream: where the line goes; None is standard error.
    """

    def __init__(
        self, units: int, done: int, rows: int, interval_s: float, *, items_name: str, stream: TextIO | None = None
    ) -> None:
        self.units, self.done, self.rows, self.items_name = units, done, rows, items_name
        self.rows_done = self.items = 0
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._interval = 0.5 if self._terminal else interval_s
        self._began = self._shown = time.monotonic()

    def add(self, rows: int, items: int) -> None:
        """Count one more committed unit, with so many rows and items."""
        self.done += 1
        self.rows_done += rows
        self.items += items

    @property
    def items_per_s(self) -> float:
        """Items a second, over the whole of this run."""
        return self.items / max(1e-9, time.monotonic() - self._began)

    def show(self, *, now: bool = False) -> None:
        """Print the line when the last one is old enough, or `now`."""
        clock = time.monotonic()
        if not now and clock - self._shown < self._interval:
            return
        self._shown = clock
        line = self.line(clock - self._began)
        if self._terminal:
            write_over(self._stream, line)
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def line(self, seconds: float) -> str:
        """The line after `seconds` of work."""
        left = (
            f"{duration(seconds * (self.rows - self.rows_done) / self.rows_done)} left"
            if self.rows_done
            else "starting"
        )
        rate = self.items / max(1e-9, seconds)
        counts = f"units {self.done}/{self.units}  rows {self.rows_done}/{self.rows}  {self.items_name} {self.items}"
        return f"{counts}  {rate:.1f} {self.items_name}/s  {left}"

    def end(self) -> None:
        """Show the last state, and leave it on the terminal."""
        self.show(now=True)
        if self._terminal:
            self._stream.write("\n")


def duration(seconds: float) -> str:
    """`45 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = round(seconds)
    for unit, size, lower, step in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // step} {lower}"
    return f"{whole} s"

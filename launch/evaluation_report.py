"""What `launch/evaluate.py` writes: report.json, windows.csv and the page; and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.build.progress import duration
from data_pipeline.store.files import atomic_file
from trainer.evaluation.page import evaluation_page
from trainer.evaluation.paper import PROTOCOLS, beside
from trainer.evaluation.session import Session, json_text
from trainer.evaluation.tables import windows_table

if TYPE_CHECKING:
    import argparse

    from trainer.evaluation.run import Done
    from trainer.evaluation.shown import Shown

LINE_S = 30.0
"""Seconds between lines of progress where standard error is no terminal."""


def full_report(session: Session, arguments: argparse.Namespace) -> dict[str, Any]:
    """All results so far, with the comparison and the paper's rows where they were asked for."""
    report = session.report()
    if arguments.baseline is not None:
        report["comparison"] = session.compared(arguments.baseline)
    if arguments.protocol is not None:
        first = {model["model"]: model["results"][0] for model in report["models"] if model["results"]}
        options = {"--max-windows": arguments.max_windows, "--interval": arguments.interval}
        report["paper"] = beside(PROTOCOLS[arguments.protocol], first, options)
    return report


def write(
    session: Session, arguments: argparse.Namespace, windows: list[tuple[str, list[str], list[Shown]]] | None = None
) -> None:
    """Write what was measured so far, where an output was named.

    Args:
        windows: those that the page shows; None while the measurement goes on.
    Raises:
        StoreError: the disk is full; the files of before are still there.
    """
    if arguments.output is None:
        return
    report = full_report(session, arguments)
    for name, text in (
        ("report.json", json_text(report)),
        ("windows.csv", windows_table(session)),
        ("report.html", evaluation_page(report, windows)),
    ):
        with atomic_file(arguments.output / name) as temporary:
            temporary.write_text(text, "utf-8")


def progress_line(names: Sequence[str], sources: int) -> Callable[[int, int, Done], None]:
    """Shows on standard error how far the measurement is, and how long the rest takes.

    Args:
        names: of the models.
        sources: of each model.
    """
    began = shown_at = time.monotonic()
    gained: dict[tuple[int, int], float] = {}
    made: dict[tuple[int, int], tuple[int, int]] = {}
    terminal = sys.stderr.isatty()

    def show(number: int, place: int, done: Done) -> None:
        nonlocal shown_at
        gained[number, place] = done.share - done.before
        made[number, place] = made.get((number, place), (done.windows, 0))[0], done.windows
        clock = time.monotonic()
        if clock - shown_at < (0.2 if terminal else LINE_S):
            return
        shown_at = clock
        whole = len(names) * sources
        share = (number * sources + place + done.share) / whole
        worked = sum(gained.values()) / whole
        left = f"{duration((clock - began) * (1 - share) / worked)} left" if worked > 0 else "starting"
        which = f"model {number + 1} of {len(names)}, " if len(names) > 1 else ""
        rate = sum(last - first for first, last in made.values()) / (clock - began)
        speed = f"{rate:.2g} windows/s, " if rate else ""
        line = f"{which}{done.windows} windows, {speed}{100 * share:.0f} %, {left}"
        print(f"\r\033[K{line}\r" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    return show


def output_files(output: Path) -> str:
    """Where the results are."""
    return f"written to {output / 'report.html'}, report.json and windows.csv"

"""The results of a session as tables: every window as a line of CSV; for a terminal, the models beside each other."""

from __future__ import annotations

import csv
import io
from itertools import repeat
from typing import Any

from trainer.evaluation.comparison import sentence
from trainer.evaluation.measures import METRICS
from trainer.evaluation.page import DIGITS
from trainer.evaluation.report import shown, table_of
from trainer.evaluation.session import Session


def windows_table(session: Session) -> str:
    """Every measured window as a line of CSV, sorted by model, split and key; what a window lacks is empty."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    metrics = [
        name
        for name in METRICS
        if any(name in windows.values for measured in session.measured for windows in measured.windows.values())
    ]
    rows.writerow(["model", "split", "source", "first_frame", "interval", "fps", *metrics])
    for measured in session.measured:
        for place, windows in sorted(measured.windows.items()):
            split = measured.candidate.sources[place].settings.get("split", "")
            values = {name: map(repr, numbers.tolist()) for name, numbers in windows.values.items()}
            columns = [values.get(name, repeat("", len(windows))) for name in metrics]
            for key, interval, fps, *cells in zip(windows.keys, windows.intervals, windows.fps, *columns, strict=True):
                rows.writerow([measured.candidate.name, split, *key, interval, repr(fps), *cells])
    return written.getvalue()


def summary(report: dict[str, Any]) -> str:
    """The text for a terminal: a table of the models for each source, the paper's rows, and the comparison."""
    parts = []
    for source in dict.fromkeys(result["source"] for model in report["models"] for result in model["results"]):
        found = [(model, one) for model in report["models"] for one in model["results"] if one["source"] == source]
        metrics = [name for name in METRICS if any(name in one["metrics"] for _, one in found)]
        rows = [
            [model["model"], str((model["provenance"] or {}).get("step", "")), str(one["windows"])]
            + [_cell(name, one["metrics"].get(name, {}).get("value")) for name in metrics]
            for model, one in found
        ]
        if len(rows) > 1:
            parts.append(f"{source}\n{table_of(['model', 'step', 'windows', *map(shown, metrics)], rows)}")
    if report.get("paper"):
        parts.append(_paper_lines(report["paper"]))
    for one in report.get("comparison", ()):
        lines = [f"  {shown(name)} {sentence(name, compared)}" for name, compared in one["metrics"].items()]
        head = f"{one['model']} against {one['baseline']}, {one['windows']} windows of {one['sources']} sources"
        parts.append("\n".join([f"{head}: {one['source']}", *lines, *(f"  note: {note}" for note in one["remarks"])]))
    return "\n\n".join(parts)


def _cell(column: str, value: float | None) -> str:
    return "" if value is None else f"{value:.{DIGITS[column]}f}"


def _paper_lines(paper: dict[str, Any]) -> str:
    columns = [key for key in paper["rows"][0] if key not in ("name", "from")]
    rows = [
        [f"{row['name']} ({row['from']})", *(_cell(column, row[column]) for column in columns)] for row in paper["rows"]
    ]
    differs = [f"  {name} differs: {one}" for name, said in paper["differences"].items() for one in said]
    head = f"beside the paper ({paper['source']}), {paper['collection']}"
    titles = ["method", *("rate %" if column == "rate" else shown(column) for column in columns)]
    return "\n".join([head, table_of(titles, rows), f"  {paper['remark']}", *differs])

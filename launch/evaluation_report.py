"""What `launch/evaluate.py` writes: the report of a model, or the curve over the checkpoints of a run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.report.html import Chart, Series, page, section, table
from data_pipeline.store.files import atomic_file

Report = Mapping[str, Any]
"""Of one model: `model`, `weights`, `provenance`, and `results`, one for each source."""
DIGITS = {"psnr": 2, "ssim": 4, "lpips": 4, "st_lpips": 4, "fvd": 1}


def write(arguments: argparse.Namespace, reports: Sequence[Report]) -> None:
    """Write what was measured so far to `--output`, where that is asked for."""
    if arguments.output is None:
        return
    if arguments.output.suffix.lower() == ".html":
        text = curve_page(str(arguments.checkpoints), reports)
    elif arguments.checkpoints is None:
        text = json.dumps({"format": 1} | dict(reports[0]), indent=1) + "\n"
    else:
        curve = {"format": 1, "run": str(arguments.checkpoints), "checkpoints": [dict(report) for report in reports]}
        text = json.dumps(curve, indent=1) + "\n"
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(arguments.output) as temporary:
        temporary.write_text(text, "utf-8")


def curve_table(reports: Sequence[Report]) -> str:
    """The metrics by step, for a terminal: a table for each source."""
    parts = []
    for source, (head, rows) in _tables(reports).items():
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
        parts.append("\n".join([source, *lines]))
    return "\n\n".join(parts)


def curve_page(run: str, reports: Sequence[Report]) -> str:
    """The same as a page with a chart of each metric."""
    sections = []
    for source, (head, rows) in _tables(reports).items():
        steps = [float(row[0]) for row in rows]
        charts = []
        for column, name in enumerate(head[2:], start=2):
            values = [float(row[column]) if row[column] else None for row in rows]
            charts.append(Chart(name, [Series(name, steps, values)], "by step").render())
        sections.append(section(source, *charts, table(head, rows, numeric=range(len(head)))))
    return page(f"Checkpoints of {run}", *sections)


def _tables(reports: Sequence[Report]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Source -> head and rows: step, weights, and a column for each metric that was measured."""
    found: dict[str, tuple[list[str], list[list[str]]]] = {}
    for source in dict.fromkeys(result["source"] for report in reports for result in report["results"]):
        chosen = [(report, result) for report in reports for result in report["results"] if result["source"] == source]
        names = [name for name in DIGITS if any(name in result["metrics"] for _, result in chosen)]
        rows = []
        for report, result in chosen:
            metrics = result["metrics"]
            cells = [f"{metrics[name]['value']:.{DIGITS[name]}f}" if name in metrics else "" for name in names]
            rows.append([str(report["provenance"]["step"]), report["provenance"]["weights"], *cells])
        found[source] = (["step", "weights", *names], rows)
    return found

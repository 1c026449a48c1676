"""Train the small runs of docs/healthy.md, and draw their curves as SVG files.

    python -m tests.tools.healthy_curves --shards SHARDS --output DIR [--only NAME] [key=value ...]

Each run is one process of launch/train.py on one core, in DIR/runs/NAME. A run that was interrupted goes on from its
checkpoint, and a run that has finished is only drawn again. DIR gets NAME.svg for each run and end_values.md, the table
of the values at the end of the runs. With --only it gets the picture of that run alone, for which the healthy run is
trained as well, because each picture shows both. `key=value` words are settings behind those of each run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.report.html import Chart, Markup, Series, tag
from launch.exit_status import DONE, REFUSED
from tests.tools.healthy_runs import COMMON, END_VALUES, HEALTHY, RUNS, Panel, SmallRun

ROOT = Path(__file__).parents[2]
CONFIG = "configs/train/demo.yaml"
CHART = (520, 250)  # pixels, width and height
TEXT_WIDTH, LINE = 140, 20  # letters in a line of text, and pixels from one line to the next

Rows = Sequence[dict[str, Any]]
"""The objects of a metrics.jsonl."""


def command(run: SmallRun, shards: Path, runs: Path, words: Sequence[str] = ()) -> list[str]:
    """The training of a run, as it is typed in the project's folder.

    Args:
        runs: folder in which each run has a folder of its name.
        words: settings behind those of the run.
    """
    settings = [*COMMON, *run.words, *words]
    if run.fork_at:
        settings.append(f"fork_from={runs / HEALTHY.name}@{run.fork_at}")
    return ["launch/train.py", "--config", CONFIG, *settings, f"output={runs / run.name}", f"data.shards={shards}"]


def train(run: SmallRun, shards: Path, runs: Path, words: Sequence[str]) -> None:
    """Train a run in a process of its own. A fork needs the checkpoint of the healthy run.

    Raises:
        RuntimeError: the training ended with an error, which it has printed, and the run is not one that gives up.
    """
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"DS_ACCELERATOR": "cpu"}
    line = command(run, shards.absolute(), runs.absolute(), words)
    print(f"== {run.name}: {' '.join(line)}", flush=True)
    status = subprocess.run([sys.executable, *line], cwd=ROOT, env=environment, check=False).returncode
    if status != DONE and not (run.gives_up and status == REFUSED):
        raise RuntimeError(f"the training of {run.name} ended with status {status}; its own messages are above")


def read_rows(run: Path) -> Rows:
    """The objects of a run's metrics.jsonl, in their order."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def curve(rows: Rows, term: str) -> tuple[list[float], list[float | None]]:
    """Steps and values of a term in all rows that have it; None is a value that was not finite."""
    having = [row for row in rows if term in row]
    return [row["step"] for row in having], [row[term] for row in having]


def picture(run: SmallRun, rows: Rows, healthy: Rows) -> str:
    """The SVG file of a run.

    Args:
        run: what is drawn.
        rows: its metrics.jsonl.
        healthy: that of the healthy run, which is drawn beside each curve of another run.
    Raises:
        ValueError: no value of a chart was recorded.
    """
    width, height = CHART
    lines = [*textwrap.wrap(_made_by(run), TEXT_WIDTH), *textwrap.wrap(run.remedy, TEXT_WIDTH)]
    top = 40 + LINE * len(lines)
    parts: list[Markup] = [tag("title", run.title), tag("text", run.title, x=8, y=26, font_size=18, font_weight=600)]
    parts += [tag("text", line, x=8, y=48 + LINE * number, font_size=13) for number, line in enumerate(lines)]
    for number, panel in enumerate(run.panels):
        drawn = chart(panel, rows, None if run is HEALTHY else healthy)
        parts.append(drawn.svg(x=number % 2 * width, y=top + number // 2 * height, width=width, height=height))
    bottom = top + (len(run.panels) + 1) // 2 * height
    paper = tag("rect", width=2 * width, height=bottom, fill="#ffffff")
    return tag(
        "svg", paper, *parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {2 * width} {bottom}",
        font_family="system-ui, 'DejaVu Sans', sans-serif", fill="#1d2433",
    ) + "\n"  # fmt: skip


def _made_by(run: SmallRun) -> str:
    """The settings that made a picture, as a line of its text."""
    if run is HEALTHY:
        return f"Settings: {CONFIG} {' '.join(COMMON)}"
    since = f", and a fork of it at step {run.fork_at}" if run.fork_at else ""
    return f"Settings: those of the healthy run{since}, with {' '.join(run.words)}"


def chart(panel: Panel, rows: Rows, healthy: Rows | None) -> Chart:
    """One chart of a picture; `healthy` adds the healthy run's curves."""
    series = [Series(name, *curve(rows, term)) for name, term in panel.terms.items()]
    if healthy is not None:
        for name, term in panel.terms.items():
            beside = f"healthy {name}" if len(panel.terms) > 1 else "healthy"
            series.append(Series(beside, *curve(healthy, term)))
    return Chart(panel.title, series, log=panel.log, size=CHART)


def end_values(runs: dict[str, Rows]) -> str:
    """The last value of each term of `END_VALUES`, as a table in Markdown with a column for each run."""
    table = [["last value", *runs], ["---", *("---:" for _ in runs)]]
    for term in END_VALUES:
        last = [curve(rows, term)[1][-1:] for rows in runs.values()]
        table.append([f"`{term}`", *("" if not value else _shown(value[0]) for value in last)])
    skipped = [sum(row.get("skipped", 0) for row in rows) for rows in runs.values()]
    table.append(["steps skipped", *map(str, skipped)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in table)


def _shown(value: float | None) -> str:
    """Three digits, and thousands in full; "not finite" for what metrics.jsonl has as null."""
    if value is None:
        return "not finite"
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.3g}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="a dataset with the splits train and val")
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs, the pictures and the table")
    parser.add_argument("--only", choices=RUNS, help="draw this run alone")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings behind those of each run")
    arguments = parser.parse_intermixed_args(argv)
    chosen = list(RUNS.values()) if arguments.only is None else [RUNS[arguments.only]]
    rows = {}
    runs = arguments.output / "runs"
    for run in [HEALTHY, *(run for run in chosen if run is not HEALTHY)]:
        train(run, arguments.shards, runs, arguments.words)
        rows[run.name] = read_rows(runs / run.name)
    for run in chosen:
        file = arguments.output / f"{run.name}.svg"
        file.write_text(picture(run, rows[run.name], rows[HEALTHY.name]), "utf-8")
        print(file)
    if arguments.only is None:
        file = arguments.output / "end_values.md"
        file.write_text(end_values(rows), "utf-8")
        print(file)


if __name__ == "__main__":
    main()

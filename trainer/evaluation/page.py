"""The page of `launch/evaluate.py`: the table of models, the paper's rows, comparisons, and windows that play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from data_pipeline.report.html import Chart, Markup, Series, fold, page, section, table, tag, video
from data_pipeline.report.sortable import Item, sortable_list, sortable_table
from trainer.evaluation.comparison import COVERAGE, sentence
from trainer.evaluation.measures import METRICS
from trainer.evaluation.paper import COLUMNS
from trainer.evaluation.report import shown
from trainer.evaluation.shown import Shown

TITLE = "Reconstruction"
DIGITS = {name: digits for name, (_, _, digits) in METRICS.items()} | {"rate": 3}


def evaluation_page(report: Mapping[str, Any], windows: Sequence[tuple[str, list[str], list[Shown]]] | None) -> str:
    """The whole page.

    Args:
        report: what report.json holds.
        windows: for each source the models, and the windows that are shown; None while the measurement goes on.
    """
    sources = dict.fromkeys(result["source"] for model in report["models"] for result in model["results"])
    parts = [tag("h1", TITLE)]
    parts += [_source(f"t{number}", source, report) for number, source in enumerate(sources)]
    parts += _not_measured(report["models"])
    if report.get("paper"):
        parts.append(_paper(report["paper"]))
    if report.get("comparison"):
        parts.append(_comparison(report["comparison"]))
    if windows is None:
        parts.append(section("Windows", tag("p", "The moving pictures come when the measurement has ended.")))
    else:
        parts += [_windows(f"w{number}", *some) for number, some in enumerate(windows)]
    return page(TITLE, *parts)


def _source(name: str, source: str, report: Mapping[str, Any]) -> Markup:
    """The table of the models on one source, with notes, and charts where there are several steps."""
    found = [(model, result) for model in report["models"] for result in model["results"] if result["source"] == source]
    metrics = [metric for metric in METRICS if any(metric in result["metrics"] for _, result in found)]
    columns = ["model", "weights", "step", "windows", "sources", "frames x size", "rate %", *map(shown, metrics)]
    items = [_row(model, result, metrics) for model, result in found]
    notes = [tag("p", f"{model['model']}: {note}", class_="soft") for model, result in found for note in _notes(result)]
    ways = {f"{shown(key)} not computed: {way}": None for _, result in found for key, way in _missing(result)}
    return section(
        source,
        sortable_table(name, columns, items, numeric=range(2, len(columns))),
        *(tag("p", way, class_="soft") for way in ways),
        *(notes if len(notes) < 12 else [fold(f"{len(notes)} notes", *notes)]),
        *_charts(found, metrics),
    )


def _not_measured(models: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """The models that gave no windows of a source, with the reasons."""
    rows = [[model["model"], item["source"], item["reason"]] for model in models for item in model["failed"]]
    return [section("Not measured", table(["model", "windows of", "reason"], rows))] if rows else []


def _row(model: Mapping[str, Any], result: Mapping[str, Any], metrics: Sequence[str]) -> Item:
    values = [_value(result, metric) for metric in metrics]
    provenance = model["provenance"] or {}
    step, rate = provenance.get("step"), 100 * result["compression_rate"]
    weights = provenance.get("weights", model["weights"])
    shape = f"{result['frames_per_window']} x {result['image_size']}"
    figures = [_figure(metric, value) for metric, value in zip(metrics, values, strict=True)]
    size = result["frames_per_window"] * result["image_size"] ** 2
    return Item(
        [model["model"], weights, step, result["windows"], result["sources"], shape, f"{rate:.3f}", *figures],
        [model["model"], weights, step, result["windows"], result["sources"], size, rate, *values],
    )


def _figure(column: str, value: float | None) -> str | None:
    return None if value is None else f"{value:.{DIGITS[column]}f}"


def _missing(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(result["not_computed"].items())


def _notes(result: Mapping[str, Any]) -> list[str]:
    notes = list(result["remarks"])
    notes += [f"cut short: {result['incomplete']}"] if result["incomplete"] else []
    notes += [f"{result['left_out_frames']} frames left over"] if result["left_out_frames"] else []
    return notes + [f"not measured: {item['source']}: {item['reason']}" for item in result["failed"]]


def _charts(found: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], metrics: Sequence[str]) -> list[Markup]:
    """A chart over the steps for each metric, with a curve for each run of which several steps were measured."""
    runs: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for model, result in found:
        if model["provenance"]:
            run = str(PurePosixPath(model["model"]).parent)
            runs.setdefault(run, []).append((model["provenance"]["step"], result))
    curves = {run: sorted(steps, key=lambda pair: pair[0]) for run, steps in runs.items() if len(steps) > 1}
    charts = []
    for metric in metrics if curves else ():
        series = [
            Series(run, [step for step, _ in steps], [_value(result, metric) for _, result in steps])
            for run, steps in curves.items()
        ]
        charts.append(Chart(shown(metric), series, "by step").render())
    return [tag("div", *charts, class_="charts")] if charts else []


def _value(result: Mapping[str, Any], metric: str) -> float | None:
    return result["metrics"].get(metric, {}).get("value")


def _paper(paper: Mapping[str, Any]) -> Markup:
    columns = ["method", "from", "rate %", *(shown(column) for column in COLUMNS[1:])]
    items = [
        Item(
            [row["name"], row["from"], *(_figure(column, row[column]) for column in COLUMNS)],
            [row["name"], row["from"], *(row[column] for column in COLUMNS)],
        )
        for row in paper["rows"]
    ]
    differs = [
        tag("p", f"{name} differs from the paper's protocol: {'; '.join(said)}." if said else f"{name}: as the paper.")
        for name, said in paper["differences"].items()
    ]
    return section(
        f"Beside the paper: {paper['collection']}",
        sortable_table("paper", columns, items, numeric=range(2, len(columns))),
        tag("p", f"{paper['source']}. {paper['remark']}", class_="soft"),
        *differs,
    )


def _comparison(comparison: Sequence[Mapping[str, Any]]) -> Markup:
    rows = [
        [one["model"], one["source"], one["windows"], one["sources"], shown(metric), sentence(metric, compared)]
        for one in comparison
        for metric, compared in one["metrics"].items()
    ]
    remarks = dict.fromkeys(remark for one in comparison for remark in one["remarks"])
    text = (
        f"Model minus baseline over the windows of both; the {100 * COVERAGE:g} % interval comes from a bootstrap over "
        "whole sources. A difference is one where the interval does not hold 0."
    )
    head = ["model", "windows of", "windows", "sources", "metric", "difference"]
    return section(
        f"Compared with {comparison[0]['baseline']}",
        tag("p", text),
        table(head, rows, numeric=[2, 3]),
        *(tag("p", remark, class_="soft") for remark in remarks),
    )


def _windows(name: str, source: str, models: Sequence[str], windows: Sequence[Shown]) -> Markup:
    """Best, median and worst windows, each as one video: the source, and right of it the models."""
    metrics = list(dict.fromkeys(metric for item in windows for values in item.values.values() for metric in values))
    several = len(models) > 1
    columns = ["source", *(f"{shown(m)} of {model}" if several else shown(m) for model in models for m in metrics)]
    items = []
    for item in windows:
        title = f"{item.key[0]}, from frame {item.key[1]}"
        keys = [item.values.get(model, {}).get(metric) for model in models for metric in metrics]
        values = [
            [model, *(_figure(metric, item.values.get(model, {}).get(metric)) for metric in metrics)]
            for model in models
        ]
        seen = video(item.mp4, title) if item.mp4 else tag("p", "This window cannot be read any more.", class_="soft")
        items.append(
            Item(
                [
                    tag("strong", title),
                    tag("p", ", ".join(item.reasons), class_="soft"),
                    tag("p", f"From left to right: source, {', '.join(models)}.", class_="soft"),
                    tag("div", seen, class_="scroll"),
                    table(["model", *map(shown, metrics)], values, numeric=range(1, len(metrics) + 1)),
                ],
                [title, *keys],
            )
        )
    return section(f"Windows of {source}", sortable_list(name, columns, items))

"""The pictures of docs/healthy.md, read as a person reads them: a point's value is what the labels of its axis say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from data_pipeline.report.html import COLOURS
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.tools.healthy_curves import ROOT, command, curve, end_values, main, picture, read_rows
from tests.tools.healthy_runs import RUNS, Panel, SmallRun
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

SVG = "{http://www.w3.org/2000/svg}"
PAGE = ROOT / "docs" / "healthy.md"
PICTURES = ROOT / "docs" / "pictures"
PIXEL = 0.1  # heights of points and labels are rounded to 0.05, and values are read beyond the last label


def drawn_charts(svg: str) -> dict[str, ElementTree.Element]:
    """Title of a chart -> its element, of a picture."""
    charts = ElementTree.fromstring(svg).iter(f"{SVG}svg")
    return {chart.findtext(f"{SVG}title", ""): chart for chart in list(charts)[1:]}


def axis(chart: ElementTree.Element, anchor: str, place: str, log: bool = False) -> list[tuple[float, float]]:
    """(pixel, value) of the first and last label of an axis; anchor `end` is the axis of values, `middle` of steps."""
    labels = [
        (float(node.attrib[place]), float((node.text or "").replace(",", "")))
        for node in chart.iter(f"{SVG}text")
        if node.get("text-anchor") == anchor
    ]
    assert len(labels) > 1, "the axis has too few labels to be read"
    return [(pixel, math.log10(value) if log else value) for pixel, value in (labels[0], labels[-1])]


def between(labels: list[tuple[float, float]], pixel: float) -> float:
    (first, low), (last, high) = labels
    return low + (high - low) * (pixel - first) / (last - first)


def read_line(chart: ElementTree.Element, number: int, log: bool = False) -> list[tuple[float, float]]:
    """(step, value) of each point of a chart's line, by the labels of the axes; `log`: its decimal logarithm."""
    steps, values = axis(chart, "middle", "x"), axis(chart, "end", "y", log)
    paths = [node.attrib["d"] for node in chart.iter(f"{SVG}path") if node.get("stroke") == COLOURS[number]]
    points = [pair.split(",") for path in paths for pair in path[1:].split(" L")]
    return [(between(steps, float(x)), between(values, float(y))) for x, y in points]


def value_of_a_pixel(chart: ElementTree.Element, log: bool = False) -> float:
    (first, low), (last, high) = axis(chart, "end", "y", log)
    return abs((high - low) / (last - first))


def test_each_line_goes_through_the_values_of_metrics_jsonl(tmp_path: Path) -> None:
    loss = [7000.0, 4200.5, None, -900.25, -3000.0]
    logits = [0.1, 0.4, -0.3, 0.25, 0.7]
    rows = [{"step": 0, "event": "data", "text": "8 samples"}]
    for number in range(5):
        rows.append({"step": 10 + 10 * number, "total_loss": loss[number], "logits_real": logits[number]})
    rows.append({"step": 50, "event": "validation", "val_psnr": 20.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    healthy = [{"step": step, "total_loss": -100.0 * step, "logits_real": 10.0**step} for step in (1, 2, 3)]
    panels = (Panel("loss", {"this run": "total_loss"}), Panel("logits", {"real": "logits_real"}, log=True))
    run = SmallRun("wrong", "A <wrong> run", ("a=1",), "Set a=2 & start again.", panels)

    svg = picture(run, read_rows(tmp_path), healthy)

    charts = drawn_charts(svg)
    steps = [10, 20, 40, 50]
    line = read_line(charts["loss"], 0)
    assert [step for step, _ in line] == pytest.approx(steps, abs=0.02)
    assert [value for _, value in line] == pytest.approx(
        [value for value in loss if value is not None], abs=PIXEL * 2 * value_of_a_pixel(charts["loss"])
    )
    assert [value for _, value in read_line(charts["loss"], 1)] == pytest.approx(
        [-100, -200, -300], abs=PIXEL * 2 * value_of_a_pixel(charts["loss"])
    )
    assert [value for _, value in read_line(charts["logits"], 0, log=True)] == pytest.approx(
        [math.log10(value) for value in logits if value > 0], abs=PIXEL * 2 * value_of_a_pixel(charts["logits"], True)
    )
    text = "".join(ElementTree.fromstring(svg).itertext())
    assert "A <wrong> run" in text
    assert "Settings: those of the healthy run, with a=1" in text
    assert "Set a=2 & start again." in text


def test_a_picture_of_values_that_nobody_recorded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'disc_loss': no values were recorded"):
        picture(RUNS["discriminator_takes_over"], [{"step": 1, "train_psnr": 9.0, "logits_real": 0.0}], [])


def test_the_table_has_the_last_value_of_each_term() -> None:
    rows = [{"step": 1, "logvar": 0.5, "skipped": 2}, {"step": 2, "logvar": -0.12345, "skipped": 1}, {"step": 2}]
    table = end_values({"a": rows, "b": [{"step": 1, "logvar": None, "total_loss": -12345.6}]})
    cells = {line.split(" | ")[0].strip("| `"): line.strip("|\n ").split(" | ")[1:] for line in table.splitlines()}
    assert cells["last value"] == ["a", "b"]
    assert cells["logvar"] == ["-0.123", "not finite"]
    assert cells["total_loss"][1] == "-12346"
    assert cells["steps skipped"] == ["3", "0"]


@pytest.mark.parametrize("name", RUNS)
def test_the_settings_of_a_run_are_accepted(name: str) -> None:
    _, _, file, *words = command(RUNS[name], Path("unused"), Path("unused"))
    assert load_config(TrainConfig, [ROOT / file], words).steps == 300


def test_the_page_shows_each_picture_once_and_only_files_that_exist() -> None:
    shown = re.findall(r"!\[.+?\]\(pictures/(.+?)\)", PAGE.read_text("utf-8"))
    assert sorted(shown) == sorted(file.name for file in PICTURES.iterdir())
    assert sorted(shown) == sorted(f"{name}.svg" for name in RUNS)
    assert len(shown) <= 12
    assert all((PICTURES / name).stat().st_size < 40_000 for name in shown)


@pytest.mark.parametrize("name", RUNS)
def test_a_picture_ends_where_the_table_of_the_page_says(name: str) -> None:
    """The page's table and its pictures are of the same runs, and each picture names the settings of its run."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    (head,) = (cells for cells in lines if cells[0] == "last value")
    table = {cells[0].strip("`"): cells[head.index(name)] for cells in lines if len(cells) == len(head)}
    svg = (PICTURES / f"{name}.svg").read_text("utf-8")
    charts = drawn_charts(svg)
    text = "".join(ElementTree.fromstring(svg).itertext())
    assert all(word in text for word in RUNS[name].words)
    compared = 0
    for panel in RUNS[name].panels:
        for number, term in enumerate(panel.terms.values()):
            if table.get(term, "not finite") == "not finite":
                continue
            chart, value = charts[panel.title], float(table[term])
            _, end = read_line(chart, number, panel.log)[-1]
            expected = math.log10(value) if panel.log else value
            rounded = 6e-3 / math.log(10) if panel.log else 6e-3 * abs(value)  # the table has three digits
            assert end == pytest.approx(expected, abs=2 * PIXEL * value_of_a_pixel(chart, panel.log) + rounded), term
            compared += 1
    assert compared > 1


@pytest.mark.slow
def test_the_tool_trains_and_draws(tmp_path: Path) -> None:
    clips = [
        clip
        for split in ("train", "val")
        for clip in make_clips(8 if split == "train" else 2, frames=(20,), size=(68, 68), split=split)
    ]
    shards = write_dataset(tmp_path / "shards", split_into_shards(clips, [5]), short_side=68)
    few = ["steps=4", "gan.start=2", "gan.warmup=0", "telemetry.log_every=1", "validation.every=2"]
    few += ["data.workers=0", "validation.clips=2", "optim.generator.warmup=1", "optim.discriminator.warmup=1"]
    output = tmp_path / "out"

    main(["--shards", str(shards), "--output", str(output), "--only", "collapsed_latent", *few])

    assert [file.name for file in output.glob("*.*")] == ["collapsed_latent.svg"]
    charts = drawn_charts((output / "collapsed_latent.svg").read_text("utf-8"))
    chart = charts["kl_loss (nats a clip)"]
    for number, name in enumerate(("collapsed_latent", "healthy")):
        steps, values = curve(read_rows(output / "runs" / name), "kl_loss")
        line = read_line(chart, number, log=True)
        assert [step for step, _ in line] == pytest.approx(steps, abs=0.02)
        assert [value for _, value in line] == pytest.approx(
            [math.log10(value) for value in values if value], abs=2 * PIXEL * value_of_a_pixel(chart, log=True)
        )

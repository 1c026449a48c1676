"""The page on a dataset: real clips, refused ones, hostile text; read back with an HTML parser and a browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import ENCODER_VERSION, cut_clips
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.ledger import Ledger
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.takedown import take_down
from data_pipeline.report.page import _head, _ledger
from data_pipeline.report.survey import SurveyConfig, survey
from data_pipeline.store.local import LocalStore
from launch import report_shards
from tests.data_pipeline.cut.videos import decoded, picture, real_video, write_video
from tests.tools import browser

SCRIPT = "<script>alert('caption')</script> \"http://stranger.example/x.png\""
HOSTILE = 'x"><img src=q onerror=alert(1)>.mp4'
VOID = {"meta", "img", "br", "!doctype"}


class Reader(HTMLParser):
    """Tags, attributes and the text of each figure and table row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.figures: list[dict[str, str]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)
        self.attributes += [(key, value or "") for key, value in attributes]
        if name not in VOID:
            self.open.append(name)
        if name == "figure":
            self.figures.append({"text": "", "image": ""})
        elif name == "img":
            self.figures[-1]["image"] = dict(attributes)["src"] or ""
        elif name == "tr":
            self.rows.append([])
        elif name in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data
        if "figure" in self.open:
            self.figures[-1]["text"] += data
        if "td" in self.open:
            self.rows[-1][-1] += data

    def figure(self, *parts: str) -> dict[str, str]:
        """The one figure whose text holds all the parts."""
        (figure,) = [item for item in self.figures if all(part in item["text"] for part in parts)]
        return figure


def jpeg(source: str) -> np.ndarray:
    """Pixels of a data URI."""
    kind, _, data = source.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows: two good ones, one of them with a hostile name, and four that are refused or broken."""
    folder = tmp_path_factory.mktemp("videos")
    shutil.copy(real_video("carphone_pristine.mp4"), folder / "car.mp4")
    shutil.copy(real_video("bikes.mp4"), folder / HOSTILE)
    write_video(folder / "still.mp4", (picture(7, 96, 96) for _ in range(50)))
    (folder / "broken.mp4").write_bytes(b"no video at all" * 100)
    rows = [
        ("car.mp4", SCRIPT),
        (HOSTILE, "bicycles in a street"),
        ("still.mp4", "nothing moves"),
        ("broken.mp4", "broken"),
        ("https://stranger.example/a.mp4", ""),
        ("gone.mp4", "a secret caption"),
    ]
    with (folder / "m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("video", "caption"), *rows])
    return folder


@pytest.fixture(scope="module")
def dataset(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dataset")
    clip = ClipConfig(short_side=72, min_seconds=1.0, max_seconds=2.5, min_short_side=72)
    config = ShardsConfig(source=str(videos / "m.csv"), output=str(output), clip=clip, unit_rows=2)
    store = LocalStore(output)
    planned = make_plan(config, ENCODER_VERSION, store)
    worker = Worker(BuildJob(config, planned.plan, planned.base), partial(cut_clips, config=clip))
    for unit in range(planned.plan.units):
        worker.run(unit)
    finalize(Dataset(store, planned.plan))
    return output


@pytest.fixture(scope="module")
def page(dataset: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("page") / "report.html"
    arguments = [str(dataset), "--output", str(target), "--source", str(videos / "m.csv")]
    assert report_shards.main(arguments) == 0
    return target.read_text()


def test_the_page_runs_nothing_and_loads_nothing(page: str) -> None:
    reader = Reader(page)
    assert set(reader.tags).isdisjoint({"script", "iframe", "object", "link", "a", "form", "base", "video"})
    assert not [key for key, _ in reader.attributes if key.startswith("on")]
    sources = [value for key, value in reader.attributes if key in ("src", "href", "xlink:href", "srcset", "data")]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import", page)
    assert SCRIPT in reader.text, "shown as it is written"
    assert HOSTILE in reader.text


@pytest.mark.skipif(not browser.program(), reason="no browser (Debian: chromium)")
def test_a_real_browser_shows_it_all_and_runs_nothing(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page)
    seen = browser.look_at(tmp_path / "report.html")
    assert seen["drawn"] == seen["images"] == Reader(page).tags.count("img") > 0
    assert (seen["scripts"], seen["links"], seen["fetched"], seen["console"]) == (0, 0, [], [])
    assert seen["width"] <= 1280, "nothing sticks out at the side"
    assert SCRIPT in seen["text"], "shown as it is written"
    assert HOSTILE in seen["text"]


def test_its_numbers_are_those_of_the_dataset(page: str, dataset: Path) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    rows = described["rows"]
    assert rows["rejected"] == {"caption_missing": 1, "frozen": 1}
    assert rows["quarantined"] == {"missing": 1, "undecodable": 1}
    table = [row for row in Reader(page).rows if row]
    for fate in ("rejected", "quarantined"):
        shown = {row[1]: int(row[2]) for row in table if row[0] == fate}
        assert shown == rows[fate]
    assert [row[2] for row in table if row[0] == "committed"] == [str(rows["committed"])]
    assert [row[2] for row in table if row[0] == "all source rows"] == [str(rows["input"])]
    assert f"every clip: {described['samples']} values" in Reader(page).text


def test_accepted_clips_are_decoded_from_the_shards(page: str, dataset: Path) -> None:
    sheets = [item for item in Reader(page).figures if item["image"] and "psnr" in item["text"]]
    assert len(sheets) == json.loads((dataset / "dataset.json").read_text())["samples"]
    shown = jpeg(Reader(page).figure(HOSTILE, "0.00 to")["image"])
    source = decoded(real_video("bikes.mp4").read_bytes())[0]
    height, width = source.shape[:2]
    square = source[:, (width - height) // 2 :][:, :height]
    first = np.asarray(Image.fromarray(square).resize((112, 112))).astype(float)
    assert shown.shape == (112, 3 * 112 + 4, 3)
    assert np.abs(shown[:, :112] - first).mean() < 12, "the first of three frames"


def test_refused_ones_have_reason_measure_and_a_picture_where_there_can_be_one(page: str, dataset: Path) -> None:
    reader = Reader(page)
    still = reader.figure("frozen", "still.mp4", "nothing moves")
    record = json.loads((dataset / "units" / "000001.json").read_text())
    measured = record["rows"][0]["rejected"][0]["measured"]["frozen"]
    assert f"frozen {measured:.4g}" in still["text"]
    expected = np.asarray(Image.fromarray(picture(7, 96, 96)).resize((112, 112))).astype(float)
    assert np.abs(jpeg(still["image"]) - expected).mean() < 12
    for parts in (
        ("caption_missing", "characters 0", "remote"),
        ("undecodable", "broken.mp4", "cannot be decoded"),
        ("missing", "gone.mp4", "there is no such file"),
    ):
        assert reader.figure(*parts)["image"] == ""


def test_without_the_source_no_picture_is_made_of_it(dataset: Path) -> None:
    result = survey(LocalStore(dataset), SurveyConfig(pictures=1))
    refused = [item for items in result.refused.values() for item in items]
    stretches = json.loads((dataset / "dataset.json").read_text())["clips"]["rejected"]
    assert len(refused) == 3 + sum(stretches.values()), "three rows that were not cut, and every stretch"
    assert {item.no_picture for item in refused} == {"no picture: the report was made without --source"}
    assert len(result.accepted) == 1


def test_another_source_is_refused(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "m.csv"
    other.write_text("video,caption\ncar.mp4,another car\n")
    target = tmp_path / "page.html"
    assert report_shards.main([str(dataset), "--source", str(other), "--output", str(target)]) == 2
    assert "is not what the dataset was built from, which is 'm.csv'" in capsys.readouterr().err
    assert report_shards.main([str(tmp_path), "--output", str(target)]) == 2
    assert not target.exists()


def test_a_dataset_in_work_and_what_was_taken_down(dataset: Path, tmp_path: Path) -> None:
    copy = LocalStore(tmp_path / "copy")
    shutil.copytree(dataset, copy.root)
    take_down(Dataset.open(copy), {"gone.mp4", "car.mp4"})
    for name in ("dataset.json", "units/000001.json"):
        copy.delete(name)
    target = tmp_path / "page.html"
    assert report_shards.main([str(copy.root), "--output", str(target)]) == 0
    text = Reader(target.read_text()).text
    assert "2 of 3" in text
    assert "not finalized" in text
    for removed in ("a secret caption", "car.mp4", "alert('caption')"):
        assert removed not in text
    assert text.count("taken down on demand: nothing of it is shown") == 2


@pytest.mark.parametrize(("accounted", "words"), [(4, "the ledger balances"), (3, "the ledger does not balance")])
def test_shares_are_percent_and_a_missing_row_is_said(accounted: int, words: str) -> None:
    found = Ledger(input=4, committed=1)
    found.rejected["too_short"] = accounted - 1
    shown: Any = SimpleNamespace(ledger=found, plan=SimpleNamespace(units=1, rows=4), complete=True, committed=1)
    shown.name = "data"
    assert words in _head(shown)
    assert "25.00 %" in _ledger(shown)

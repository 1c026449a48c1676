"""With rows=record a wrong row of the manifest is a rejected row of the dataset, and all books balance with it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.build.planner import make_plan
from data_pipeline.dataset.config import Duplicates
from data_pipeline.dataset.plan_parts import PLAN_SCHEMA
from data_pipeline.dataset.verify import verify
from data_pipeline.report.config import SurveyConfig
from data_pipeline.report.survey import survey
from data_pipeline.source.config import ColumnsConfig, WrongRows
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub

WRONG = {2: "video is missing", 5: "start must be seconds", 9: "fields"}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Twelve rows, three of them wrong; row 7 has the id of the wrong row 5."""
    folder = stub.write_sources(tmp_path / "videos", 12)
    lines = [f"id{n},v{n - 1:03d}.mp4,a caption," for n in range(1, 13)]
    lines[1] = "id2,,a caption,"
    lines[4] = "id5,v004.mp4,a caption,soon"
    lines[6] = "id5,v006.mp4,a caption,"
    lines[8] = "id9,v008.mp4"
    (folder / "m.csv").write_text("id,video,caption,start\n" + "\n".join(lines) + "\n")
    return folder / "m.csv"


def test_wrong_rows_are_rejected_and_the_others_built(manifest: Path, tmp_path: Path) -> None:
    config = replace(stub.config_of(manifest, tmp_path / "out"), rows=WrongRows.RECORD)
    store = LocalStore(tmp_path / "out")
    result = stub.build_here(config)
    assert result.dataset is not None
    counts = result.dataset.ledger.row_counts()
    assert counts.input == 12
    assert counts.rejected["wrong_row"] == 3
    fates = {
        row["row"]: row
        for key in store.keys("units/")
        if key.endswith(".json")
        for row in json.loads(store.read(key))["rows"]
    }
    for number, why in WRONG.items():
        assert (fates[number]["fate"], fates[number]["reason"]) == ("rejected", "wrong_row")
        assert why in fates[number]["measured"]["problem"]
        assert fates[number]["id"] == f"m.csv row {number}"
    assert fates[7]["id"] == "id5"
    assert fates[7]["fate"] == "committed", "a wrong row takes no id away from a good one"
    assert verify(store).problems == []


def test_the_report_shows_what_is_wrong_and_knows_a_manifest_with_other_columns(manifest: Path, tmp_path: Path) -> None:
    manifest.write_text(manifest.read_text().replace("video,caption", "file,caption"))
    config = replace(
        stub.config_of(manifest, tmp_path / "out"), rows=WrongRows.RECORD, columns=ColumnsConfig(video="file")
    )
    stub.build_here(config)
    found = survey(LocalStore(tmp_path / "out"), SurveyConfig(), manifest)
    shown = {item.row: item.measured["problem"] for item in found.refused["rejected", "wrong_row"]}
    assert shown.keys() == WRONG.keys()
    for number, why in WRONG.items():
        assert why in shown[number]


def test_a_manifest_of_the_same_name_with_other_wrong_rows_can_follow(manifest: Path, tmp_path: Path) -> None:
    config = replace(stub.config_of(manifest, tmp_path / "out"), rows=WrongRows.RECORD)
    stub.build_here(config)
    other = stub.write_sources(tmp_path / "more", 3) / "m.csv"
    other.write_text("id,video,caption,start\nnew,v000.mp4,a caption,\nnewer,,a caption,\n")
    planned = make_plan(replace(config, source=str(other)), stub.ENCODER, LocalStore(tmp_path / "out"), append=True)
    assert [segment.duplicates for segment in planned.plan.segments] == [0, 0]


def test_a_plan_without_wrong_rows_is_what_it_was(manifest: Path, tmp_path: Path) -> None:
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([line for n, line in enumerate(lines) if n not in WRONG]) + "\n")
    plans = []
    for rows in WrongRows:
        store = LocalStore(tmp_path / rows.value)
        config = replace(stub.config_of(manifest, store.root), rows=rows, duplicates=Duplicates.MERGE)
        plans.append(make_plan(config, stub.ENCODER, store).plan)
        (part,) = [key for key in store.keys("plan/")]
        assert pq.read_schema(io.BytesIO(store.read(part))).names == PLAN_SCHEMA.names
    assert plans[0] == plans[1]


def test_a_plan_with_wrong_rows_is_found_again(manifest: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    config = replace(stub.config_of(manifest, store.root), rows=WrongRows.RECORD)
    first = make_plan(config, stub.ENCODER, store)
    assert not make_plan(config, stub.ENCODER, store).fresh
    manifest.write_text(manifest.read_text() + "\n")  # other bytes, the same rows
    assert make_plan(config, stub.ENCODER, store).plan == first.plan
    manifest.write_text(manifest.read_text().replace("soon", "later"))
    with pytest.raises(ValueError, match=r"row 5, column problem: was .*soon.*, is .*later"):
        make_plan(config, stub.ENCODER, store)

"""What the page says about rows and expectations, from records as the builder writes them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.dataset.ledger import Ledger
from data_pipeline.dataset.row_fates import RejectedStretch, RowFate
from launch.demo.commands import Record
from launch.demo.findings import RowStory, _reasons, verdicts
from launch.demo.latents import Latents, Neighbours, Part
from launch.demo.page import Demo, Strip, render
from launch.demo.run import demo
from trainer.evaluation.pictures import animated_png

NASTY = "<img src=x onerror=alert(1)>"


def measured(before: float, after: float, trained: float) -> dict[tuple[str, str], dict[str, Any]]:
    def result(psnr: float) -> dict[str, Any]:
        return {
            "metrics": {"psnr": {"value": psnr}, "ssim": {"value": 0.5}},
            "not_computed": {"lpips": "pass --lpips", "fvd": "pass --fvd"},
            "windows": 4,
            "compression_rate": 0.01,
        }

    return {
        ("untrained", "val"): result(before),
        ("trained", "val"): result(after),
        ("untrained", "train"): result(8.0),
        ("trained", "train"): result(trained),
    }


@pytest.mark.parametrize(
    ("numbers", "start", "met"),
    [
        ((9.0, 16.0, 19.1), 60, [True, True, True, True]),
        ((9.0, 15.9, 19.0), 67, [True, False, False, False]),
    ],
)
def test_verdicts_at_their_limits(numbers: tuple[float, float, float], start: int, met: list[bool]) -> None:
    account = Ledger(input=3, committed=2)
    account.rejected["too_short"] = 1
    config = {"steps": 100, "gan": {"start": start}}
    assert [item.met for item in verdicts(account, measured(*numbers), config)] == met
    account.input = 4
    assert not verdicts(account, measured(*numbers), config)[0].met


def test_reasons_name_times_measures_and_errors() -> None:
    stretch = RejectedStretch(clip=1, start=9.75, end=9.88, reason="too_short", measured={"seconds": 0.25})
    committed = RowFate(row=1, id="a", fate="committed", clips=1, stretches=(stretch,))
    assert _reasons(committed) == ["9.75 to 9.88 s: too short (seconds 0.25)"]
    whole = RowFate(row=2, id="b", fate="rejected", reason="caption_missing", measured={"characters": 0})
    assert _reasons(whole) == ["caption missing (characters 0)"]
    broken = RowFate(row=3, id="c", fate="quarantined", error="undecodable", detail="moov atom not found")
    assert _reasons(broken) == ["undecodable: moov atom not found"]


@pytest.fixture
def results() -> Demo:
    account = Ledger(input=2, committed=1, clips=3, shards=1, bytes=1000)
    account.quarantined["undecodable"] = 1
    numbers = measured(9.0, 17.5, 20.5)
    config = {"steps": 10, "gan": {"start": 6}, "model": {"frames": 2, "image_size": 4}}
    png = animated_png(np.zeros((2, 4, 28, 3), dtype=np.uint8), 8)
    return Demo(
        source=NASTY, default_source=True, account=account,
        rows=[
            RowStory(1, NASTY, 0.0, 7.5, "train", NASTY, "committed", 3, [NASTY]),
            RowStory(2, "b.mp4", None, None, "", "", "quarantined", 0, ["undecodable: no moov"]),
        ],
        measured=numbers, verdicts=verdicts(account, numbers, config),
        training=[{"step": n, "l1": 1 / n, "kl_loss": 10.0**n, "batch_psnr": None} for n in (1, 2, 3)],
        config=config, config_text=NASTY, strips=[Strip(NASTY, True, 17.5, png), Strip("t", False, 20.5, png)],
        latents=Latents(7, 12_345, "fp16", [Part("structure", (3, 4, 2, 2), (-0.5, 0.25), (0.125, 2.0), 1e-3)],
                        [Neighbours(NASTY, [NASTY, "near"], [0.25, 1.5], png)]),
        records=[Record("training", f"deepspeed {NASTY}", 100.0, True)], seconds=100.0,
    )  # fmt: skip


def test_nothing_that_users_wrote_becomes_markup(results: Demo) -> None:
    page = render(results)
    assert NASTY not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 9
    assert len(re.findall(r"<img ", page)) == len(results.strips) + len(results.latents.neighbours)


def test_the_page_tells_the_account_and_the_verdict(results: Demo) -> None:
    page = render(results)
    for text in (
        "2 of 2",
        "+8.5 dB",
        "20.5 dB",
        "40%",
        "quarantined: undecodable",
        "0 to 7.5 s",
        "not computed",
    ):
        assert text in page
    assert 'class="good">+8.5 dB' in page
    missed = render(replace(results, verdicts=[replace(item, met=False) for item in results.verdicts]))
    assert 'class="bad">+8.5 dB' in missed


def test_a_source_that_is_no_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder of videos"):
        demo(tmp_path / "out", tmp_path / "none", [])
    assert not (tmp_path / "out").exists()


def test_the_latents_are_described_with_their_neighbours(results: Demo) -> None:
    page = render(results)
    for text in (
        "7 windows",
        "0.01 MB",
        "3 x 4 x 2 x 2",
        "-0.500 to 0.250",
        "0.125 to 2.000",
        "1.0e-03",
        "near (1.50)",
    ):
        assert text in page

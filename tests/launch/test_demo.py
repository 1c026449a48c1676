"""The demo end to end, a few steps of it; what the full demo reaches is checked by the demo itself."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.tools import warm

SHORT = [
    *("steps=4", "gan.start=2", "gan.warmup=0", "gan.ramp=1", "telemetry.log_every=1", "telemetry.samples_every=0"),
    *("optim.generator.warmup=1", "optim.discriminator.warmup=1", "data.global_batch=2"),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The demo in a fork of the warm Python; the commands that it starts are processes of their own, as always."""
    return warm.run(["-m", "tests.launch.short_demo", *arguments], timeout=550)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("demo")
    return output, run("--output", str(output), *SHORT)


def test_every_stage_runs_and_four_steps_are_not_enough(
    first: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    output, result = first
    assert result.returncode == 1, result.stdout + result.stderr  # far from the expected decibels, and it says so
    assert "<-- MISSED" in result.stdout
    for command in ("build_shards.py", "verify_shards.py", "deepspeed", "evaluate.py", "encode_latents.py"):
        assert re.search(rf"^\$ .*{command}", result.stdout, re.MULTILINE)
    (folder,) = [item for item in output.iterdir() if item.is_dir()]
    assert json.loads((folder / "shards" / "dataset.json").read_text())["rows"]["input"] == 6
    written = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in written if "event" not in row]) == 4


def test_the_page_holds_all_it_shows(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    output, result = first
    page = (output / "report.html").read_text("utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 6 + 3, result.stdout
    for data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert (picture.n_frames, picture.size) == (8, (4 * 64 + 3 * 4, 64))
            low, high = picture.convert("L").crop((0, 0, 64, 64)).getextrema()
            assert high - low > 50  # the source is no blank
    for text in (
        "bikes.mp4",
        "too short",
        "held out",
        "trained on",
        "not computed",
        "discriminator on",
        "lr_min",
        "structure",
        "nearest: ",
    ):
        assert text in page


def test_a_second_run_repeats_nothing(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    output, _ = first
    result = run("--output", str(output), *SHORT)
    assert result.stdout.count("done by an earlier run") == 7
    assert "\n$ " not in result.stdout


@pytest.mark.slow
def test_clips_are_generated_from_what_the_demo_left(first: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    output, _ = first
    words = ["--output", str(output), "--generate", "--diffusion-steps", "3", *SHORT]
    result = run(*words)
    assert result.stdout.count("done by an earlier run") == 7, result.stdout
    assert result.returncode == 1, "three steps are not enough, and it says so"
    for script in ("encode_latents.py", "train_diffusion.py", "sample.py"):
        assert re.search(rf"^\$ .*{script}", result.stdout, re.MULTILINE)
    page = (output / "generated.html").read_text("utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 12, "four of each of the three videos"
    for data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert (picture.n_frames, picture.size) == (8, (2 * (3 * 64 + 2 * 4), 2 * 64))
    again = run(*words)
    assert again.stdout.count("done by an earlier run") == 10, again.stdout
    assert (output / "generated.html").read_text("utf-8") == page


def test_a_source_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    result = warm.run(["-m", "launch.demo", "--output", str(tmp_path / "out"), "--source", str(tmp_path / "none")])
    assert result.returncode == 2
    assert "is not a folder of videos" in result.stderr

"""SIGKILL to workers and to the driver of an encoding of captions: the same command ends with the same bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="pip install -e '.[text]'")

from tests.data_pipeline.latents_dataset import MadeUpClip
from tests.faults.builds import assert_same_and_proven, build, committed, fingerprint, gone, started
from tests.trainer.texts.corpus import save_latents
from tests.trainer.texts.tiny_encoder import save_encoder
from trainer.texts.encoding import TASK_NAME

pytestmark = pytest.mark.slow
UNIT_PROCESS = f"ray::{TASK_NAME}"
UNITS = 30


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, and latents whose captions make `UNITS` units of 50."""
    folder = tmp_path_factory.mktemp("inputs")
    save_encoder(folder / "encoder")
    clips = [MadeUpClip(f"clip-{n:05d}-0000", 1, f"cat number {n}") for n in range(50 * UNITS - 1)]
    save_latents(folder / "latents", clips)
    return folder


def command(inputs: Path, output: Path) -> list[str]:
    """What a user types; one caption goes through the encoder at a time, so that the work takes seconds."""
    places = ["--encoder", str(inputs / "encoder"), "--latents", str(inputs / "latents"), "--output", str(output)]
    words = ["unit_captions=50", "encode.batch=1", "run.progress_s=0.2", "run.cpus=2"]
    return [sys.executable, "launch/encode_text.py", *places, *words]


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    build(command(inputs, folder / "texts"), folder / "log")
    assert committed(folder / "texts") == UNITS
    return fingerprint(folder / "texts")


def test_a_killed_worker_costs_nothing(inputs: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    with started(command(inputs, tmp_path / "texts"), tmp_path / "log", unit_process=UNIT_PROCESS) as encoding:
        encoding.kill_a_unit_process()
        assert encoding.wait() == 0, encoding.text()
    assert_same_and_proven(tmp_path / "texts", undisturbed)


def test_after_the_death_of_the_driver_the_same_command_goes_on(
    inputs: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "texts"
    with started(command(inputs, output), tmp_path / "log", unit_process=UNIT_PROCESS) as encoding:
        encoding.wait_until(lambda: (output / "plan.json").exists() and committed(output) > 0)
        gone(encoding.kill())
    done = {path: path.stat().st_mtime_ns for path in output.glob("units/*.json")}
    assert 0 < len(done) < UNITS
    build(command(inputs, output), tmp_path / "log2")
    assert_same_and_proven(output, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a committed unit is not encoded again"

"""SIGKILL to workers and to the driver of an encoding: the same command ends with the bytes of an undisturbed one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.build.dataset_job import DatasetResult
from tests.data_pipeline.latents_dataset import MadeUpClip
from tests.faults.builds import assert_same_and_proven, build, committed, fingerprint, gone, started
from tests.tools.extras import NEEDS_TRANSFORMERS
from tests.trainer.latents import corpus
from tests.trainer.latents.corpus import MORE, ROWS, build_clips, save_model
from trainer.latents.encoding import TASK_NAME

UNITS_OF_TEXTS = 30


@dataclass(frozen=True)
class Encoding:
    """An encoding to disturb: what it reads is there.

    Attributes:
        command: what a user types, without the output.
        units: of its plan.
        unit_process: how a Ray worker names itself while it encodes a unit.
        kills: how many workers are killed, one after the other.
        undisturbed: encodes into a folder in this process, without Ray.
    """

    command: list[str]
    units: int
    unit_process: str
    kills: int
    undisturbed: Callable[[Path], DatasetResult]

    def writing(self, output: Path) -> list[str]:
        """The command with its output."""
        return [*self.command, "--output", str(output), "run.progress_s=0.2", "run.cpus=2"]


def of_latents(folder: Path) -> Encoding:
    """A window at every second frame, so that each of the five units takes seconds."""
    save_model(folder / "model")
    build_clips(folder, [*ROWS, *MORE])
    places = ["--model", str(folder / "model"), "--shards", str(folder / "shards")]
    words = ["windows.choose=stride", "windows.every=2"]
    command = [sys.executable, "launch/encode_latents.py", *places, *words]

    def here(output: Path) -> DatasetResult:
        return corpus.encode_here(corpus.config_of(folder / "model", folder / "shards", output, *words))

    return Encoding(command, 5, f"ray::{TASK_NAME}", kills=2, undisturbed=here)


def of_texts(folder: Path) -> Encoding:
    """Units of 50 captions, of which one goes through the encoder at a time, so that the work takes seconds."""
    from tests.trainer.texts.corpus import config_of, encode_here, save_latents
    from tests.trainer.texts.tiny_encoder import save_encoder
    from trainer.texts.encoding import TASK_NAME

    save_encoder(folder / "encoder")
    count = 50 * UNITS_OF_TEXTS - 1  # the empty caption is one more
    save_latents(folder / "latents", [MadeUpClip(f"clip-{n:05d}-0000", 1, f"cat number {n}") for n in range(count)])
    places = ["--encoder", str(folder / "encoder"), "--latents", str(folder / "latents")]
    words = ["unit_captions=50", "encode.batch=1"]
    command = [sys.executable, "launch/encode_text.py", *places, *words]

    def here(output: Path) -> DatasetResult:
        return encode_here(config_of(folder / "encoder", folder / "latents", output, *words))

    return Encoding(command, UNITS_OF_TEXTS, f"ray::{TASK_NAME}", kills=1, undisturbed=here)


@pytest.fixture(scope="module", params=[of_latents, pytest.param(of_texts, marks=NEEDS_TRANSFORMERS)])
def encoding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoding:
    made: Encoding = request.param(tmp_path_factory.mktemp("inputs"))
    return made


@pytest.fixture(scope="module")
def undisturbed(encoding: Encoding, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes that one process makes, without Ray and its workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    encoding.undisturbed(folder)
    assert committed(folder) == encoding.units
    return fingerprint(folder)


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(encoding: Encoding, undisturbed: dict[str, str], tmp_path: Path) -> None:
    command = encoding.writing(tmp_path / "made")
    with started(command, tmp_path / "log", unit_process=encoding.unit_process) as running:
        for _ in range(encoding.kills):
            running.kill_a_unit_process()
        assert running.wait() == 0, running.text()
    assert_same_and_proven(tmp_path / "made", undisturbed)


@pytest.mark.slow
def test_after_the_death_of_the_driver_the_same_command_goes_on(
    encoding: Encoding, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "made"
    with started(encoding.writing(output), tmp_path / "log", unit_process=encoding.unit_process) as running:
        running.wait_until(lambda: (output / "plan.json").exists() and committed(output) > 0)
        gone(running.kill())
    done = {path: path.stat().st_mtime_ns for path in output.glob("units/*.json")}
    assert 0 < len(done) < encoding.units
    build(encoding.writing(output), tmp_path / "log2")
    assert_same_and_proven(output, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a committed unit is not encoded again"

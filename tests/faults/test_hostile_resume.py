"""A whole run of two ranks resumes where each file of a checkpoint was replaced by one that runs a command.

A run leaves one checkpoint for each of its steps. In each of them another file is replaced, of another rank or engine,
and COMPLETE is written anew as whoever planted it would. So one resume meets all of them, from the newest on, and must
go on from the first one, which is good.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.attacks.hostile import plant, sign
from tests.faults import trainings
from tests.faults.trainings import Command, Training, finish

pytestmark = pytest.mark.slow
STEPS = 16


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.write_settings(tmp_path_factory.mktemp("settings"))


@pytest.mark.parametrize("place", ["disk", "bucket"])
@pytest.mark.parametrize(
    "zero",
    [
        *(["zero.stage=0"], ["zero.stage=1"], ["zero.stage=2"], ["zero.stage=3"]),
        ["zero.stage=2", "zero.offload_optimizer=true"],
        ["zero.stage=3", "zero.offload_optimizer=true", "zero.offload_parameters=true", "precision=bf16"],
    ],
    ids=" ".join,
)
def test_no_file_of_a_checkpoint_runs_a_command(zero: list[str], place: str, settings: Path, tmp_path: Path) -> None:
    saving = ["checkpoint.every=1", f"checkpoint.keep={STEPS + 2}", "checkpoint.staging=", "checkpoint.upload_wait=100"]
    upload = [f"checkpoint.upload={tmp_path / 'bucket'}"] if place == "bucket" else []
    command = Command(trainings.node, settings, [*zero, *saving, *upload, f"steps={STEPS}"])
    output, mark = tmp_path / "run", tmp_path / "CODE-WAS-RUN"
    finish(command, output)
    kept = tmp_path / "bucket" if place == "bucket" else output / "checkpoints"
    checkpoints = sorted(kept.glob("step-*"), reverse=True)
    files = sorted(path.relative_to(checkpoints[0]) for path in checkpoints[0].rglob("*.pt"))
    assert {"rng-00000.pt", "rng-00001.pt"} <= {file.name for file in files}
    assert len(files) >= (8 if "zero.stage=0" not in zero else 5)
    assert len(files) < len(checkpoints), "one checkpoint stays good"
    for checkpoint, file in zip(checkpoints, files, strict=False):
        plant(checkpoint / file, mark)
        sign(checkpoint)
    shutil.rmtree(output / "model")
    shutil.rmtree(output / "model_ema")
    if place == "bucket":
        shutil.rmtree(output)
    more = Command(trainings.node, settings, [*zero, *saving, *upload, f"steps={STEPS + 1}"])
    training = Training(more, output, None)
    try:
        training.wait_until(lambda: training.process.poll() is not None, "the end")
        text = training.text
    finally:
        training.end()
    assert not mark.exists(), text[-4000:]
    assert training.process.returncode == 0, text[-4000:]
    for checkpoint, file in zip(checkpoints, files, strict=False):
        named = f"{checkpoint.name}/{file}"
        lines = [line for line in text.splitlines() if named in line and "nothing in it was run" in line]
        assert lines, (named, text[-4000:])
    assert f"going on after step {STEPS - len(files)}," in text
    assert "Traceback" not in text

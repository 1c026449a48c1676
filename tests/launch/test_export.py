"""launch/export.py on the checkpoints of a real run, by every way to name them, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.export import main
from tests.trainer.checkpoint.resharded import CHAIN
from trainer.checkpoint.files import MARKER, step_name

ROOT = Path(__file__).parents[2]
LAST = max(CHAIN)


def test_average_of_the_newest_checkpoint_unless_told_otherwise(
    chained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(chained / "run"), "--output", str(tmp_path / "a")]) == 0
    newest = chained / "run" / "checkpoints" / step_name(LAST)
    assert capsys.readouterr().out == f"{tmp_path / 'a'}: ema weights of step {LAST}, from {newest}\n"
    live = chained / f"model_ema-{LAST}" / "model.safetensors"
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == live.read_bytes()
    uploaded = f"file://{chained / 'run' / 'checkpoints'}"  # checkpoint.upload has the layout of OUTPUT/checkpoints
    assert main(["--checkpoint", uploaded, "--output", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == live.read_bytes()


def test_needs_no_deepspeed(chained: Path, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(chained / "run"), "--output", str(tmp_path / "model")]
    code = f"import sys; from launch.export import main; main({arguments}); assert 'deepspeed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.fixture
def checkpoint(chained: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(chained / "run" / "checkpoints" / step_name(LAST), tmp_path / step_name(LAST))


def refused(checkpoint: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    output = checkpoint.parent / "model"
    assert main(["--checkpoint", str(checkpoint), "--output", str(output), *arguments]) == 2
    assert not output.exists()
    return capsys.readouterr().err


def test_incomplete_checkpoint_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / MARKER).unlink()
    assert "has no COMPLETE: it was cut off while it was written" in refused(checkpoint, capsys)
    assert "holds no complete checkpoint" in refused(checkpoint.parent, capsys)


def test_damaged_checkpoint_is_refused_by_file(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((checkpoint / "generator").glob("*_optim_states.pt"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert f"{file} has another content than was written (sha256)" in refused(checkpoint, capsys)


def test_average_that_is_not_there_is_refused_with_the_remedy(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = json.loads((checkpoint / MARKER).read_text())
    for name in [name for name in marker["files"] if name.startswith("ema-")]:
        (checkpoint / name).unlink()
        del marker["files"][name]
    (checkpoint / MARKER).write_text(json.dumps(marker))
    assert "has no moving average (ema.decay was 0); use --weights raw" in refused(
        checkpoint, capsys, "--weights", "ema"
    )
    assert main(["--checkpoint", str(checkpoint), "--output", str(checkpoint.parent / "raw")]) == 0
    assert "raw: raw weights of step" in capsys.readouterr().out


def test_a_renamed_checkpoint_and_what_an_export_left_that_was_killed(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed, output = checkpoint.rename(checkpoint.with_name("best")), checkpoint.with_name("model")
    left = checkpoint.with_name(".model.partial")
    left.mkdir()
    (left / "of_another_checkpoint.safetensors").touch()
    assert main(["--checkpoint", str(renamed), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: ema weights of step {LAST}, from {renamed}\n"
    assert (output / "model.safetensors").is_file()
    assert not (output / "of_another_checkpoint.safetensors").exists()
    assert not left.exists()


def test_other_refusals(chained: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not of step 2; leave the step away" in refused(checkpoint, capsys, "--step", "2")
    elsewhere = ["--output", str(checkpoint.parent / "model")]
    assert main(["--checkpoint", str(chained / "run"), "--step", "5", *elsewhere]) == 2
    assert "holds no checkpoint of step 5; there are 2, 4, 6, 8" in capsys.readouterr().err
    (checkpoint.parent / "full").mkdir()
    (checkpoint.parent / "full" / "notes.txt").write_text("mine")
    assert main(["--checkpoint", str(checkpoint), "--output", str(checkpoint.parent / "full")]) == 2
    assert "exists and is not empty; choose another" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["run", f"run/checkpoints/{step_name(LAST)}"])
def test_places_may_be_written_as_file_addresses(chained: Path, tmp_path: Path, place: str) -> None:
    """A run and one of its checkpoints; `checkpoint.upload` stands above."""
    output = tmp_path / "model"
    assert main(["--checkpoint", f"file://{chained / place}", "--output", f"file://{output}"]) == 0
    live = chained / f"model_ema-{LAST}" / "model.safetensors"
    assert (output / "model.safetensors").read_bytes() == live.read_bytes()

"""launch/export.py on the checkpoints of a real run, by every way to name them, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launch.export import main
from tests.tools.file_limit import file_limit
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


def test_neither_deepspeed_nor_the_compiler_of_torch_is_loaded(chained: Path, tmp_path: Path) -> None:
    """Nor where the model is opened again, whose shapes are compared with those of its file first."""
    output = tmp_path / "model"
    arguments = ["--checkpoint", str(chained / "run"), "--output", str(output)]
    code = (
        "import sys; from launch.export import main; from model.vidtwin import VidTwin; "
        f"main({arguments}); VidTwin.from_pretrained({str(output)!r}); "
        "assert not {'deepspeed', 'torch._dynamo'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


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


def test_a_file_that_the_checkpoint_did_not_write_is_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name is such that it would be read as the average of one rank more."""
    added = checkpoint / "ema-00099.pt"
    added.write_bytes(next(checkpoint.glob("ema-*.pt")).read_bytes())
    assert f"{added} is not listed in COMPLETE; move it away, or name another checkpoint" in refused(checkpoint, capsys)
    added.unlink()
    assert main(["--checkpoint", str(checkpoint), "--output", str(checkpoint.parent / "model")]) == 0


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


def test_a_checkpoint_for_diffusers_has_the_weights_of_its_model_and_a_card(
    chained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "hub"
    words = ["--checkpoint", str(chained / "run"), "--weights", "ema", "--format", "diffusers", "--output", str(output)]
    assert main(words) == 0
    newest = chained / "run" / "checkpoints" / step_name(LAST)
    assert capsys.readouterr().out == f"{output}: format diffusers, ema weights of step {LAST}, from {newest}\n"
    live = load_file(chained / f"model_ema-{LAST}" / "model.safetensors")
    written = load_file(output / "diffusion_pytorch_model.safetensors")
    assert written.keys() == {f"vidtwin.{name}" for name in live}
    assert all(torch.equal(written[f"vidtwin.{name}"], value) for name, value in live.items())
    assert f"| training step | {LAST} |" in (output / "README.md").read_text()


def test_a_model_directory_gets_a_card_and_keeps_its_weights(
    chained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live, output = chained / f"model_ema-{LAST}", tmp_path / "hub"
    assert main(["--model", str(live), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: format model, from {live}\n"
    names = ["README.md", "config.yaml", "model.safetensors", "provenance.json"]
    assert sorted(file.name for file in output.iterdir()) == names
    assert (output / "model.safetensors").read_bytes() == (live / "model.safetensors").read_bytes()


def test_statistics_of_the_latents_go_into_the_configuration(tiny_model_directory: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "statistics.json", tmp_path / "hub"
    numbers = {"mean": [0.0, 1.0, 2.0, 3.0], "std": [1.0, 2.0, 3.0, 4.0]}
    file.write_text(json.dumps({"structure": numbers, "dynamics": numbers}))
    words = ["--model", str(tiny_model_directory), "--format", "diffusers", "--output", str(output)]
    assert main([*words, "--statistics", str(file)]) == 0
    settings = json.loads((output / "config.json").read_text())
    assert (settings["latents_mean"], settings["latents_std"]) == (2 * numbers["mean"], 2 * numbers["std"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.export warns of its own deprecated parts
def test_graphs_are_of_the_size_that_is_asked_for(tiny_model_directory: Path, tmp_path: Path) -> None:
    words = ["--model", str(tiny_model_directory), "--format", "torch-export", "--output", str(tmp_path / "out")]
    assert main([*words, "--frames", "2", "--image-size", "48"]) == 0
    encoder = torch.export.load(tmp_path / "out" / "encoder.pt2").module()
    assert encoder(torch.zeros(1, 3, 2, 48, 48))[0].shape == (1, 4, 4, 3, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of --checkpoint and --model is needed, and not both"),
        (["--checkpoint", "a", "--model", "b"], "one of --checkpoint and --model is needed, and not both"),
        (["--model", "b", "--step", "3"], "argument --step: a model directory has only one set of weights"),
        (["--model", "b", "--weights", "raw"], "argument --weights: a model directory has only one set of weights"),
        (["--model", "b", "--frames", "8"], "argument --frames: only --format torch-export or onnx fixes the size"),
        (["--model", "b", "--format", "diffusers", "--image-size", "8"], "argument --image-size: only --format"),
        (["--model", "b", "--format", "onnx", "--statistics", "s"], "argument --statistics: only --format diffusers"),
        (["--model", "b", "--format", "diffusers", "--statistics", "s"], "--model b not found; name a directory with"),
        (["--model", "b", "--format", "coreml"], "argument --format: invalid choice: 'coreml'"),
        (["--model", "b", "--frames", "0"], "argument --frames: 0 must be a whole number of at least 1"),
    ],
)
def test_combinations_that_cannot_be(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"launch/export.py: {message}")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_format_without_its_packages_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.export_options.find_spec", lambda name: None if name == "onnxscript" else object())
    assert main(["--model", "b", "--format", "onnx", "--output", str(tmp_path / "out")]) == 2
    assert "needs the package onnxscript; install this project with its extra `onnx`" in capsys.readouterr().err


def test_an_image_that_the_patches_do_not_divide_leaves_nothing_behind(
    tiny_model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(tiny_model_directory), "--format", "onnx", "--image-size", "50"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "model.patch_size=8 does not divide model.image_size=50; use model.image_size=48" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"model"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.export and torch.onnx warn of their own deprecated parts
@pytest.mark.parametrize("form", ["model", "diffusers", "torch-export", "onnx"])
@pytest.mark.parametrize("limit", [4_000, 60_000])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(
    tiny_model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, limit: int
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript", reason="pip install -e '.[onnx]'")
    words = ["--model", str(tiny_model_directory), "--format", form, "--output", str(tmp_path / "out")]
    with file_limit(limit):
        assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("launch/export.py: ")
    assert line.endswith("File too large")
    assert [file.name for file in tmp_path.iterdir() if "out" in file.name] == []

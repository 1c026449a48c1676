"""A model that cannot be opened is refused by every script with the option that names it and the path of the file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from launch import decode_latents, encode_latents, estimate, evaluate, export, reconstruct, reenact, sample
from model.config import CONFIG_FILE, WEIGHTS_FILE
from tests.data_pipeline.dataset.tiny_dataset import real_video
from tests.launch.test_sample import save_dit

Main = Callable[[Sequence[str]], int]
VIDEO = str(real_video("bikes.mp4"))
CHECKED = ("--diffusion", "--config", "configs/diffusion/small.yaml", "--classes", "2")
SCRIPTS: dict[str, tuple[Main, str, list[str]]] = {
    "reconstruct": (reconstruct.main, "--model ", ["--source", VIDEO, "--output", "OUT.mp4"]),
    "reenact": (reenact.main, "--model ", ["--structure", VIDEO, "--dynamics", VIDEO, "--output", "OUT.mp4"]),
    "evaluate": (evaluate.main, "--model ", ["--source", VIDEO, "--output", "OUT"]),
    "evaluate, baseline": (evaluate.main, "--baseline ", ["--model", "GOOD", "--source", VIDEO, "--output", "OUT"]),
    "decode": (decode_latents.main, "--model ", ["--latents", "a.safetensors", "--fps", "8", "--output", "OUT"]),
    "export": (export.main, "--model ", ["--output", "OUT"]),
    "sample": (sample.main, "--decoder ", ["--model", "DIT", "--fps", "8", "--output", "OUT"]),
}


@pytest.fixture
def faulty(tiny_model_directory: Path, tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Model directories with a fault: fault -> the directory, and what a refusal says after the option."""
    root = tmp_path / "faulty"

    def copy(name: str) -> Path:
        return shutil.copytree(tiny_model_directory, root / name)

    missing, gone, damaged, device = root / "missing", copy("gone"), copy("damaged"), copy("device")
    (gone / CONFIG_FILE).unlink()
    (damaged / CONFIG_FILE).write_text("][")
    (device / WEIGHTS_FILE).unlink()
    os.mkfifo(device / WEIGHTS_FILE)
    return {
        "missing": (missing, f"{missing} not found"),
        "without a configuration": (gone, f"{gone / CONFIG_FILE} not found"),
        "with a damaged one": (damaged, f"{damaged / CONFIG_FILE} is not a YAML file"),
        "with a FIFO": (device, f"{device / WEIGHTS_FILE}: is a FIFO, not a regular file"),
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_refusal_names_the_option_and_the_file(
    faulty: dict[str, tuple[Path, str]],
    tiny_model_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    script: str,
) -> None:
    if script == "sample":
        pytest.importorskip("diffusers", reason="pip install -e '.[diffusers]'")
    main, option, words = SCRIPTS[script]
    places = {"GOOD": str(tiny_model_directory), "OUT": str(tmp_path / "out"), "OUT.mp4": str(tmp_path / "out.mp4")}
    if "DIT" in words:
        places["DIT"] = str(save_dit(tmp_path / "dit", tiny_model_directory))
    for fault, (place, message) in faulty.items():
        given = [option.strip(), str(place), *(places.get(word, word) for word in words)]
        assert main(given) == 2, fault
        (line,) = capsys.readouterr().err.splitlines()
        assert f": {option}{message}" in line, fault
        assert not list(tmp_path.glob("out*")), fault


def test_so_do_scripts_that_take_the_model_as_a_setting_and_those_that_take_a_checkpoint(
    faulty: dict[str, tuple[Path, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, message = faulty["with a damaged one"]
    empty, output = tmp_path / "empty", ["--output", str(tmp_path / "out")]
    empty.mkdir()
    assert encode_latents.main(["--model", str(place), "--shards", str(empty), *output]) == 2
    assert f": model={message}" in capsys.readouterr().err
    assert estimate.main([*CHECKED, "--model", str(place)]) == 2
    assert f": --model {message}" in capsys.readouterr().err
    assert export.main(["--checkpoint", str(empty), *output]) == 2
    assert f": --checkpoint {empty} holds no complete checkpoint" in capsys.readouterr().err
    assert evaluate.main(["--checkpoints", str(empty), "--source", VIDEO, *output]) == 2
    assert f": --checkpoints {empty} holds no complete checkpoint" in capsys.readouterr().err

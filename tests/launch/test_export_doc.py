"""docs/export.md: its commands and its Python are run as they are written, on a small run and its model."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch import export
from model.export.formats import Format
from model.vidtwin import VidTwin

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "export.md").read_text()
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("bash", "python")}
COMMANDS = [line for block in BLOCKS["bash"] for line in block.splitlines()]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.export and torch.onnx warn of their own deprecated parts


@pytest.fixture
def desk(chained: Path, tiny_model: VidTwin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder: a run, a model, statistics of its latents."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "base").symlink_to(chained / "run")
    channels = tiny_model.config.structure.channels, tiny_model.config.dynamics.channels
    kinds = zip(("structure", "dynamics"), channels, strict=True)
    numbers = {kind: {"mean": [0.0] * count, "std": [1.0] * count} for kind, count in kinds}
    (tmp_path / "statistics.json").write_text(json.dumps(numbers))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))  # diffusers copies the code there
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def run(command: str) -> None:
    words = shlex.split(command)
    assert words[:2] == ["python", "launch/export.py"]
    if "onnx" in words:
        pytest.importorskip("onnxscript")
    assert export.main(words[2:]) == 0


SLOW = ("--format onnx", "--format torch-export")
"""What takes seconds to compute its graphs; the tests of the formats show the same in the short run."""


@pytest.mark.parametrize(
    "command", [pytest.param(line, marks=[pytest.mark.slow] * any(word in line for word in SLOW)) for line in COMMANDS]
)
def test_a_command_writes_its_directory(command: str, desk: Path, tiny_model: VidTwin) -> None:
    if "--model" in command:
        tiny_model.save_pretrained("models/base")
    run(command)
    output = desk / shlex.split(command)[-1]
    assert (output / "README.md").read_text().startswith("---\nlibrary_name: ")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS["python"])))
def test_the_python_runs(number: int, desk: Path, tiny_model: VidTwin) -> None:
    code = BLOCKS["python"][number]
    if "diffusers" in code:
        pytest.importorskip("diffusers")
    tiny_model.save_pretrained("models/base")
    form = "diffusers" if "diffusers" in code else "torch-export"
    folder = "hub/base" if form == "diffusers" else "graphs/base"
    run(f"python launch/export.py --model models/base --format {form} --output {folder}")
    config = tiny_model.config
    shape = (2, 3, config.frames, config.image_size, config.image_size)
    start = f"import torch\nvideo = torch.zeros({shape})\n"
    script = f"{start}{code}\nassert tuple(video.shape) == {shape}\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_format_is_described() -> None:
    assert {f"`{form.value}`" for form in Format} <= set(re.findall(r"`[\w-]+`", TEXT.split("```bash")[0]))
    assert sum("--format" in line for line in COMMANDS) == len(COMMANDS) - 1


def test_the_line_to_publish_is_one_that_the_command_understands() -> None:
    cli = Path(sys.executable).with_name("hf")
    if not cli.is_file():
        pytest.skip("no hf command: pip install huggingface_hub")
    words = next(shlex.split(line) for line in TEXT.splitlines() if line.startswith("    hf "))
    done = subprocess.run([cli, words[1], "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert len(words) == 4
    assert re.search(r"REPO_ID \[LOCAL_PATH\]", done.stdout)

"""docs/latents_reading.md: its Python runs as it is written, and so do its commands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_pipeline.read.normalization import Normalization
from data_pipeline.store.local import LocalStore
from tests.tools import warm

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "latents_reading.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def desk(tmp_path: Path, latents: LocalStore) -> Path:
    """The reader's folder, with a dataset and two normalised latents of somebody else's model."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "latents").symlink_to(latents.root)
    made = {"structure": torch.zeros(2, 3, 4, 2, 2), "dynamics": torch.zeros(2, 2, 4, 4)}
    safetensors.torch.save_file(made, tmp_path / "made.safetensors")
    return tmp_path


def test_the_python_of_the_text_does_as_it_says(desk: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk / "model").symlink_to(model)
    monkeypatch.chdir(desk)
    names: dict[str, object] = {}
    code = blocks("python")
    assert len(code) == 5
    for block in code:
        exec(compile(block, "docs/latents_reading.md", "exec"), names)
    video, structure, batch = names["video"], names["structure"], names["batch"]
    assert isinstance(video, torch.Tensor)
    assert video.shape == (4, 3, 4, 32, 32)
    assert 0 <= float(video.min()) < float(video.max()) <= 1
    normalization = names["normalization"]
    assert isinstance(normalization, Normalization)
    assert torch.equal(structure, normalization.invert(batch.structure, batch.dynamics)[0])  # type: ignore[arg-type, attr-defined]


def test_the_commands_of_the_text_write_what_it_says(desk: Path, model: Path) -> None:
    """They run in the project's folder; the places of the text are those of the desk."""
    places = {"data/latents": desk / "data" / "latents", "made.safetensors": desk / "made.safetensors"}
    places |= {"seen": desk / "seen", "made": desk / "made", "model": model}
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 2
    for line in lines:
        words = [str(places.get(word, word)) for word in line.split()]
        done = warm.run(
            words[1:],
            environment={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
    assert len(list((desk / "seen").glob("phone-*.mp4"))) == 2
    assert sorted(file.name for file in (desk / "made").iterdir()) == ["made-00000.mp4", "made-00001.mp4"]

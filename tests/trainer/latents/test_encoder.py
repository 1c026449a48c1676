"""The model directory that latents are made with: what it must hold, and that a store's is a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.config import CONFIG_FILE, WEIGHTS_FILE
from trainer.latents.encoder import model_directory


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_both_files_of_a_model_are_needed(tmp_path: Path, missing: str) -> None:
    for name in {CONFIG_FILE, WEIGHTS_FILE} - {missing}:
        (tmp_path / name).touch()
    with (
        pytest.raises(FileNotFoundError, match=f"^{tmp_path / missing} not found; a model directory holds"),
        model_directory(str(tmp_path)),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError, match="/none not found; name a directory"),
        model_directory(f"{tmp_path}/none"),
    ):
        pass


def test_a_model_may_be_named_by_one_of_its_files(tmp_path: Path) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / name).touch()
    for place in (tmp_path, tmp_path / WEIGHTS_FILE):
        with model_directory(str(place)) as found:
            assert found == tmp_path

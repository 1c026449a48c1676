"""Another user of the machine gives a training no compiled code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from torch import nn

from trainer.engine.compiled import CACHE, compile_forward


def test_compiled_code_lies_in_a_folder_of_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(CACHE, "")
    monkeypatch.delenv(CACHE)
    compile_forward(nn.Linear(1, 1))
    folder = Path(os.environ[CACHE])
    assert folder.parent.parent == tmp_path
    assert [item.stat().st_mode & 0o777 for item in (folder, folder.parent)] == [0o700, 0o700]


def test_a_folder_that_the_operator_names_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    compile_forward(nn.Linear(1, 1))
    assert os.environ[CACHE] == str(tmp_path)

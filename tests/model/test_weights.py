"""Weights on disk: what is written comes back, and others may read it."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from model.weights import save_tensors


def test_a_weights_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    transposed = torch.arange(6.0).view(2, 3).T
    before = os.umask(0o027)
    try:
        save_tensors({"a": transposed}, tmp_path / "a.safetensors")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], transposed)

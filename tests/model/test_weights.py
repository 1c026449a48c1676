"""Weights on disk: what is written comes back, and others may read it."""

import errno
import json
import os
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from model.weights import check_module_file, load_tensors, save_tensors
from tests.tools.file_limit import file_limit


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


def test_a_disk_that_takes_no_more_is_an_error_of_the_system_with_its_number(tmp_path: Path) -> None:
    """safetensors itself raises an error of its own, which is no OSError and no ValueError."""
    with file_limit(4096), pytest.raises(OSError, match="File too large") as told:
        save_tensors({"a": torch.zeros(10_000)}, tmp_path / "a.safetensors")
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("shape", [[2**63, 0], [2**64, 0], [2**31] * 3, [-1]])
def test_a_header_with_sizes_that_no_tensor_has_is_a_damaged_file(tmp_path: Path, shape: list[int]) -> None:
    """The format: eight bytes with the length of the header, and the header as JSON. Such a tensor has no data."""
    file = tmp_path / "model.safetensors"
    header = json.dumps({"weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    for read in (load_tensors, partial(check_module_file, nn.Linear(1, 1))):
        with pytest.raises(ValueError, match=rf"^{file} is not a complete safetensors file \([^\n]*\)\Z"):
            read(file)

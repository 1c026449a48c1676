"""Tensors from the bytes of a safetensors member that nobody has written by its library."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_pipeline.dataset.latent_tensors import read_tensors
from data_pipeline.dataset.tar import ClipError


def member(dtype: str, shape: list[int], values: bytes) -> bytes:
    """The bytes of a file with one tensor, by the format's description."""
    header = json.dumps({"structure": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(values)]}}).encode()
    return len(header).to_bytes(8, "little") + header + values


def test_bf16_is_the_upper_half_of_float32() -> None:
    (found,) = read_tensors(member("BF16", [1, 2], b"\x80\x3f\x00\xc0")).values()  # 0x3f80, 0xc000
    assert found.dtype == np.float32
    assert found.tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize("shape", [[2**63, 0], [2**62, 2, 0], [1] * 70])
def test_a_shape_that_no_array_has_is_the_clips_fault(shape: list[int]) -> None:
    values = b"" if 0 in shape else b"\0" * 4
    with pytest.raises(ClipError, match="has the tensor structure of a shape that no array has"):
        read_tensors(member("F32", shape, values))

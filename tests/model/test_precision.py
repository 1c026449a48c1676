"""Tables that follow from a formula: as exact as the model they are in, whatever it was converted to before."""

import copy

import pytest
import torch

from model.patches import grid_positions, sincos_positions
from model.resampling import resampling
from tests.model.tiny_vidtwin import tiny

pytestmark = pytest.mark.numeric


def test_tables_are_rounded_once_to_the_type_of_the_model() -> None:
    model = tiny(min_frames=2)
    exact = {
        "encoder.patch_positions": grid_positions(5, 32, 5),
        "decoder.time_positions": sincos_positions(4, 32)[:, None],
    }
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32, torch.float64):
        model.to(dtype)
        for name, table in exact.items():
            assert model.get_buffer(name).dtype is dtype
            assert torch.equal(
                model.get_buffer(name), table.to(torch.float32).to(dtype) if dtype.itemsize < 8 else table
            )
            assert torch.equal(copy.deepcopy(model).get_buffer(name), model.get_buffer(name))
    assert torch.equal(model.structure_decoder.mix.shorter[1, :3], resampling(4, 3))
    assert not any("positions" in name or "shorter" in name for name in model.state_dict())

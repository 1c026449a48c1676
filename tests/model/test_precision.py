"""Tables that follow from a formula: as exact as the model they are in, whatever it was converted to before."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch

from model.patches import grid_positions, sincos_positions
from model.precision import without_tf32
from model.resampling import resampling
from tests.model.tiny_vidtwin import tiny

pytestmark = pytest.mark.numeric


@pytest.fixture
def switches() -> Iterator[Callable[[], tuple[bool, bool]]]:
    """Reads both switches, which are put back as they were after the test."""

    def read() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = read()
    yield read
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("matmul", [False, True])
@pytest.mark.parametrize("cudnn", [False, True])
def test_both_switches_of_tf32_are_off_inside_and_as_before_afterwards(
    switches: Callable[[], tuple[bool, bool]], matmul: bool, cudnn: bool
) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    with without_tf32():
        assert switches() == (False, False)
    assert switches() == (matmul, cudnn)
    with pytest.raises(ZeroDivisionError), without_tf32():
        1 / 0  # noqa: B018  (an error inside)
    assert switches() == (matmul, cudnn)


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

"""Weights at another clip size: layers that must keep their meaning."""

from dataclasses import replace

import pytest
import torch

from model.patches import grid_positions, sincos_positions
from model.resampling import resampling
from model.resize import check_same_function, resize_weights
from model.vidtwin import VidTwin
from tests.model.tiny_vidtwin import TINY, tiny, video_for

pytestmark = pytest.mark.numeric


def test_positions_of_another_grid_are_cell_centres_in_its_coordinates() -> None:
    """Twice the grid: each old cell is cut in halves whose centres lie a quarter cell to either side of its own."""
    frequency = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angle = torch.tensor([-0.25, 0.25, 0.75, 1.25], dtype=torch.float64)[:, None] * frequency
    torch.testing.assert_close(sincos_positions(4, 8, span=2), torch.cat([angle.sin(), angle.cos()], 1))
    assert torch.equal(sincos_positions(5, 8, span=5), sincos_positions(5, 8))
    assert torch.equal(grid_positions(3, 16, 3), grid_positions(3, 16))
    coarse = grid_positions(4, 16, 2).view(4, 4, 16)
    torch.testing.assert_close(coarse[1, 2], torch.cat([sincos_positions(4, 8, 2)[2], sincos_positions(4, 8, 2)[1]]))


def test_same_size_is_the_same_function() -> None:
    model = tiny()
    again = VidTwin(replace(model.config, position_grid=model.config.grid))
    again.load_state_dict(resize_weights(model.state_dict(), again.state_dict()))
    video = video_for(model)
    assert torch.equal(again(video).recon, model(video).recon)


@pytest.mark.parametrize("image_size", [80, 24, 56])
def test_only_layers_as_large_as_the_clip_change(image_size: int) -> None:
    """Each stretching layer of a model for more patches maps an interpolated input to the interpolated output."""
    small = tiny().double()
    grid = image_size // TINY.patch_size
    large = VidTwin(replace(small.config, image_size=image_size, position_grid=5)).double()
    weights = resize_weights(small.state_dict(), large.state_dict())
    large.load_state_dict(weights)
    changed = {name for name, value in small.state_dict().items() if not torch.equal(value, _as(weights[name], value))}
    stretch = "dynamics_decoder.stretch"
    assert changed == {f"{stretch}.{n}.{part}" for n in (0, 1) for part in ("weight", "bias")}
    if grid > 5:
        for before, after in zip(small.dynamics_decoder.stretch, large.dynamics_decoder.stretch, strict=True):
            line = torch.randn(2, before.in_features, generator=torch.Generator().manual_seed(2)).double()
            stretched = line @ resampling(before.in_features, after.in_features).T
            wanted = before(line) @ resampling(before.out_features, after.out_features).T
            torch.testing.assert_close(after(stretched), wanted, rtol=0, atol=1e-9)
    output = large(video_for(large).double())
    assert output.recon.shape == (2, 3, 4, image_size, image_size)
    assert output.recon.isfinite().all()


def _as(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`value`, or something unequal to `like` where not even the shape is the same."""
    return value if value.shape == like.shape else like + 1


def test_another_number_of_frames_resamples_the_mixing_of_queries() -> None:
    """A layer that gives every frame the same goes on doing so, and a line over the frames stays one in between."""
    short = tiny()
    long = VidTwin(replace(short.config, frames=8))
    with torch.no_grad():
        short.structure_decoder.mix.weight.copy_(torch.arange(4.0)[:, None] * torch.tensor([1.0, -2.0, 0.5]))
        short.structure_decoder.mix.bias.fill_(3.0)
    weights = resize_weights(short.state_dict(), long.state_dict())
    long.load_state_dict(weights)
    time = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])[:, None]
    torch.testing.assert_close(weights["structure_decoder.mix.weight"], time * torch.tensor([1.0, -2.0, 0.5]))
    torch.testing.assert_close(weights["structure_decoder.mix.bias"], torch.full((8,), 3.0))


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (
            replace(TINY, image_size=80),
            r"x knows the positions of a 5x5 .*image_size=80 has 10x10: set model\.position_grid=5 to lay them over "
            r"the new grid, or model\.position_grid=10",
        ),
        (replace(TINY, heads=8), r"x was trained with model\.heads=4, not 8; set model\.heads=4"),
        (
            replace(TINY, structure=replace(TINY.structure, query_heads=4)),
            r"x was trained with model\.structure\.query_heads=2, not 4",
        ),
    ],
)
def test_what_no_shape_tells_is_refused(built: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_same_function(TINY, built, "x")  # type: ignore[arg-type]

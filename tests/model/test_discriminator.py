"""PatchGAN: sizes, what a logit sees, and which norms tie the clips of a micro-batch together."""

import pytest
import torch

from model.config import DiscriminatorConfig
from model.discriminator import build_discriminator

pytestmark = pytest.mark.numeric


def video(batch: int = 2, frames: int = 4, size: int = 48) -> torch.Tensor:
    return torch.rand(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_sizes() -> None:
    """2-D: the parameter count that pix2pix's 70x70 PatchGAN is known by. Logit grids by the convolution formula."""
    flat, deep = build_discriminator(DiscriminatorConfig()), build_discriminator(DiscriminatorConfig(kind="3d"))
    assert sum(p.numel() for p in flat.parameters()) == 2_765_633
    assert flat(video(size=224)[:, :, :1]).shape == (2, 1, 26, 26)
    assert deep(video(frames=16)).shape == (2, 1, 4, 6, 6)


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_initialised_as_released(kind: str) -> None:
    torch.manual_seed(0)
    model = build_discriminator(DiscriminatorConfig(kind=kind))
    convs = [model.first, *(layer.conv for layer in model.hidden), model.last]
    for conv in convs:
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert [conv.bias is None for conv in convs] == [False, True, True, True, False]
    for layer in model.hidden:
        assert layer.norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
        assert layer.norm.weight.std().item() == pytest.approx(0.02, rel=0.3)
        assert layer.norm.bias.abs().max() == 0


def test_a_logit_sees_70_pixels() -> None:
    """Isola et al.: the receptive field of the default is 70x70."""
    model = build_discriminator(DiscriminatorConfig(norm="none"))
    x = video(batch=1, frames=1, size=160).requires_grad_()
    model(x)[0, 0, 9, 9].backward()
    assert x.grad is not None
    rows = x.grad[0, :, 0].abs().sum(dim=(0, 2)).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == 70


@pytest.mark.parametrize("kind", ["2d", "3d"])
@pytest.mark.parametrize(("norm", "tied"), [("batch", True), ("group", False), ("none", False)])
def test_only_batch_norm_ties_clips_together(kind: str, norm: str, tied: bool) -> None:
    model = build_discriminator(DiscriminatorConfig(kind=kind, norm=norm)).double().train()
    both, alone = model(video())[: (4 if kind == "2d" else 1)], model(video()[:1])
    assert both.shape == alone.shape
    assert torch.allclose(both, alone, rtol=0, atol=1e-9) != tied


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_other_depths(layers: int) -> None:
    model = build_discriminator(DiscriminatorConfig(layers=layers, width=16, norm="none"))
    assert model(video(size=64)).shape[-1] == 64 // 2**layers - 2
    with pytest.raises(ValueError, match=r"discriminator\.layers=.*at least"):
        model(video(size=2 ** (layers + 1)))


def test_channels_double_up_to_eight_times_the_first() -> None:
    """pix2pix and the released code: ndf x min(2**n, 8)."""
    model = build_discriminator(DiscriminatorConfig(layers=5, width=16))
    assert [model.first.out_channels, *(layer.conv.out_channels for layer in model.hidden)] == [16, 32, 64, *[128] * 3]
    assert model.last.in_channels == 128


def test_the_smallest_width_of_32_groups() -> None:
    """The first layer has no norm, and the second has twice its channels."""
    model = build_discriminator(DiscriminatorConfig(layers=1, width=16, norm="group"))
    assert model(video()).shape == (8, 1, 22, 22)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "4d"}, r"discriminator\.kind='4d' is not one of 2d, 3d"),
        ({"norm": "layer"}, r"discriminator\.norm='layer'"),
        ({"norm": "group", "width": 24}, r"use a multiple of 16"),
        ({"layers": 0}, r"discriminator\.layers=0"),
    ],
)
def test_configurations_that_cannot_work(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**settings)  # type: ignore[arg-type]


def test_input_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, T, H, W\]"):
        build_discriminator(DiscriminatorConfig())(video()[:, :2])


def test_activations_stay_channels_last_for_any_batch() -> None:
    """The layout that the CPU's convolutions are fastest in; a view of one clip must not lose it."""
    model = build_discriminator(DiscriminatorConfig())
    seen: list[bool] = []
    for layer in model.hidden:
        layer.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
    for batch in (1, 2):
        model(video(batch))
    assert seen == [True] * 6

"""LPIPS against the formula written out on a plain sequential VGG-16, with random weights in the published layouts."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.lpips import LPIPS

pytestmark = pytest.mark.numeric

LAYERS = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool"]
TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}  # torchvision's relu1_2 ... relu5_3


def torchvision_layout() -> nn.Sequential:
    """`vgg16().features` as torchvision orders it."""
    layers: list[nn.Module] = []
    channels = 3
    for item in LAYERS:
        if isinstance(item, int):
            layers += [nn.Conv2d(channels, item, 3, padding=1), nn.ReLU()]
            channels = item
        else:
            layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Sequential, list[Tensor]]:
    """Files as their authors publish them, and what is in them."""
    directory = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    vgg = torchvision_layout()
    for parameter in vgg.parameters():
        nn.init.normal_(parameter, std=0.05)
    heads = [torch.rand(1, channels, 1, 1) for channels in TAPS.values()]
    state = {f"features.{name}": value for name, value in vgg.state_dict().items()}
    state |= {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    torch.save(state, directory / "vgg16.pth")
    torch.save({f"lin{n}.model.1.weight": head for n, head in enumerate(heads)}, directory / "vgg.pth")
    return directory / "vgg16.pth", directory / "vgg.pth", vgg, heads


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 3, 37, 50, generator=generator) * 2 - 1 for _ in range(2))
    return a, b


def by_definition(vgg: nn.Sequential, heads: list[Tensor], a: Tensor, b: Tensor) -> Tensor:
    # fp32, as in the published network, whatever it is computed in
    mean, std = torch.tensor([-0.030, -0.088, -0.188]).to(a.dtype), torch.tensor([0.458, 0.448, 0.450]).to(a.dtype)
    x, y = ((image - mean[:, None, None]) / std[:, None, None] for image in (a, b))
    total = a.new_zeros(len(a))
    head = iter(heads)
    for index, layer in enumerate(vgg):
        x, y = layer(x), layer(y)
        if index in TAPS:
            unit = [f / ((f**2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y)]
            total = total + (next(head) * (unit[0] - unit[1]) ** 2).sum(1).mean((1, 2))
    return total[:, None, None, None]


def test_distance_and_gradient(published: tuple[Path, Path, nn.Sequential, list[Tensor]]) -> None:
    vgg_file, heads_file, vgg, heads = published
    lpips = LPIPS.from_files(vgg=vgg_file, heads=heads_file).double()
    a, b = (image.double() for image in images())
    b.requires_grad_()
    exact = copy.deepcopy(vgg).double()
    ours, expected = lpips(a, b), by_definition(exact, [head.double() for head in heads], a, b)
    # our shift and scale are fp32, as those of the published network
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)
    gradients = [torch.autograd.grad(value.sum(), b)[0] for value in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9 * gradients[1].abs().max().item())
    assert lpips(a, a).abs().max() == 0


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float32, 1e-5)])
def test_in_16_bits_only_the_features_are_rounded(
    published: tuple[Path, Path, nn.Sequential, list[Tensor]], dtype: torch.dtype, most: float
) -> None:
    """The features are those that autocast makes; the distances are those of these, in fp32."""
    lpips = LPIPS.from_files(vgg=published[0], heads=published[1])
    a, b = images()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not torch.float32):
        wanted = [tap.double() for tap in lpips._taps(a)]
    exact = copy.deepcopy(lpips).double()(a.double(), b.double())
    lpips.work_in(dtype)
    assert lpips.dtype is dtype
    for tap, other in zip(lpips._taps(a), wanted, strict=True):
        assert (tap.double() - other).norm() <= torch.finfo(dtype).eps * other.norm()
    distance = lpips(a, b)
    assert distance.dtype is torch.float32
    torch.testing.assert_close(distance.double(), exact, rtol=most, atol=0)
    assert lpips.work_in(torch.float32)(a, a).abs().max() == 0


def test_weights_are_turned_once_and_lie_channels_last() -> None:
    lpips = LPIPS().work_in(torch.bfloat16)
    for conv in lpips.features.values():
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert not conv.weight.requires_grad
        assert not conv.bias.requires_grad


def test_one_file_holds_everything(published: tuple[Path, Path, nn.Sequential, list[Tensor]], tmp_path: Path) -> None:
    lpips = LPIPS.from_files(vgg=published[0], heads=published[1])
    lpips.save(tmp_path / "lpips.safetensors")
    assert torch.equal(LPIPS.from_files(tmp_path / "lpips.safetensors")(*images()), lpips(*images()))


def test_is_frozen_and_finite_on_dead_features() -> None:
    lpips = LPIPS().train()
    assert not any(module.training for module in lpips.modules())
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    for conv in lpips.features.values():
        nn.init.zeros_(conv.weight)  # every feature is 0: the length of a vector has no gradient there
        nn.init.zeros_(conv.bias)
    a, b = images()
    b.requires_grad_()
    lpips(a, b).sum().backward()
    assert b.grad is not None
    assert b.grad.isfinite().all()


def test_files_that_do_not_fit(published: tuple[Path, Path, nn.Sequential, list[Tensor]], tmp_path: Path) -> None:
    vgg, heads, *_ = published
    with pytest.raises(ValueError, match=r"either one \.safetensors file, or both"):
        LPIPS.from_files(vgg=vgg)
    with pytest.raises(ValueError, match=r"'features\.0\.bias' is missing"):
        LPIPS.from_files(vgg=heads, heads=vgg)
    broken = torch.load(heads, weights_only=True)
    broken["lin3.model.1.weight"] = torch.zeros(1, 3, 1, 1)
    torch.save(broken, tmp_path / "broken.pth")
    with pytest.raises(ValueError, match=r"'lin3\.model\.1\.weight' has shape \[1, 3, 1, 1\].*\[1, 512, 1, 1\]"):
        LPIPS.from_files(vgg=vgg, heads=tmp_path / "broken.pth")
    with pytest.raises(ValueError, match="at least 16"):
        LPIPS()(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))

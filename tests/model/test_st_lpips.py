"""ST-LPIPS against the authors' own code, with their weights; both from the package that carries these."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.st_lpips import PACKAGE, STLPIPS

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def network() -> STLPIPS:
    return STLPIPS.from_package()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The authors' network in fp64. What their modules import and this network does not use is left empty."""
    for name, part in (("torchvision", "models"), ("torchsummary", "summary"), ("IPython", "embed")):
        module: Any = types.ModuleType(name)
        setattr(module, part, types.ModuleType(part))
        monkeypatch.setitem(sys.modules, name, module)
    theirs = importlib.import_module(f"{PACKAGE}.stlpips")
    module = theirs.LPIPS(net="vgg", variant="shift_tolerant", verbose=False).double()
    assert isinstance(module, nn.Module)
    return module


def pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two pictures in [-1, 1] that look alike, fp64."""
    source = torch.Generator().manual_seed(height)
    a = torch.rand(2, 3, height, width, generator=source, dtype=torch.float64) * 2 - 1
    return a, (a + 0.2 * torch.randn(a.shape, generator=source, dtype=torch.float64)).clamp(-1, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("size", [(18, 18), pytest.param((32, 40), marks=pytest.mark.slow), (65, 64)])
def test_distances_and_gradients_are_those_of_the_authors_code(
    published: nn.Module, network: STLPIPS, size: tuple[int, int]
) -> None:
    ours = STLPIPS().double()
    ours.load_state_dict(network.state_dict())
    a, b = pair(*size)
    b.requires_grad_()
    found, wanted = ours(a, b), published(a, b)
    assert float(wanted.detach().min()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(distance.sum(), b)[0] for distance in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12 * float(gradients[1].abs().max()))


def test_equal_pictures_have_distance_zero_and_small_ones_are_refused(network: STLPIPS) -> None:
    a = torch.rand(2, 3, 20, 24) * 2 - 1
    assert network(a, a).shape == (2, 1, 1, 1)
    assert float(network(a, a).abs().max()) == 0
    with pytest.raises(ValueError, match=r"ST-LPIPS needs .* H and W at least 18; got \[2, 3, 17, 24\]"):
        network(a[..., :17, :], a[..., :17, :])


def test_another_file_is_refused_by_the_name_of_what_it_lacks(network: STLPIPS, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "ours.pth")
    with pytest.raises(ValueError, match=r"ours\.pth: weight '.*' is (missing|unknown)"):
        STLPIPS.from_package(tmp_path / "ours.pth")


def test_without_the_package_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.st_lpips.PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(FileNotFoundError, match=r"pip install stlpips-pytorch==0\.0\.2"):
        STLPIPS.from_package()

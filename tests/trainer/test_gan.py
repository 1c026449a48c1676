"""The discriminator's schedule and losses against closed forms; the last layer's gradient against autograd."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from model.vidtwin import VidTwin
from tests.trainer.cases import global_batches, tiny_recipe
from trainer import gan
from trainer.config.objective import GanConfig, GeneratorLoss

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_nothing_then_alone_then_rising_then_full() -> None:
    config = GanConfig(start=10, warmup=5, ramp=4, weight=0.2)
    assert [config.learns(step) for step in (0, 9, 10, 100)] == [False, False, True, True]
    weights = [config.adversarial_weight(step) for step in range(30)]
    assert weights[:16] == [0.0] * 16  # at step 15 the ramp begins, at 0
    assert weights[16:20] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert set(weights[19:]) == {0.2}


def test_sudden_start_has_its_full_weight_at_once() -> None:
    config = GanConfig(start=12, warmup=0, ramp=0, weight=0.05)
    assert [config.adversarial_weight(step) for step in (11, 12, 13)] == [0.0, 0.05, 0.05]


def test_weight_0_never_learns() -> None:
    assert not GanConfig(weight=0).learns(10**9)


@pytest.mark.parametrize("name", ["start", "warmup", "ramp", "weight", "lecam_weight"])
def test_negative_numbers_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"gan\.{name}=-1 must not be negative; set gan\.{name}=0"):
        GanConfig(**{name: -1})


def test_losses_of_hand_computed_logits() -> None:
    real = torch.tensor([2.0, 0.5, -1.0], dtype=torch.float64)
    fake = torch.tensor([-3.0, 0.0, 1.0], dtype=torch.float64)
    assert gan.hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))
    assert gan.generator_loss(fake, GeneratorLoss.hinge).item() == pytest.approx(2 / 3)
    means = torch.tensor([0.5, -0.5], dtype=torch.float64)  # real, fake
    lecam = (2.5**2 + 1.0**2 + 0) / 3 + (3.5**2 + 0.5**2 + 0) / 3
    assert gan.lecam_loss(real, fake, means).item() == pytest.approx(lecam)


def test_the_non_saturating_loss_is_of_each_pictures_mean_logit() -> None:
    """Mean logits 1 and ln 3 of two pictures; sigmoid(ln 3) = 3/4. At a large negative logit the slope is still -1."""
    logits = torch.tensor([[[[3.0, -1.0]]], [[[0.0, 2 * math.log(3)]]]], dtype=torch.float64)
    expected = 0.5 * (math.log(1 + math.exp(-1)) + math.log(4 / 3))
    assert gan.generator_loss(logits, GeneratorLoss.non_saturating).item() == pytest.approx(expected, rel=1e-12)
    low = torch.full((1, 1, 1, 1), -2000.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gan.generator_loss(low, GeneratorLoss.non_saturating), low)
    assert slope.item() == -1.0


def test_last_layer_gradient_equals_autograd() -> None:
    torch.manual_seed(0)
    model = VidTwin(tiny_recipe().model).double()
    video = global_batches()[0].double()
    output = model(video)
    loss = (output.recon - video).abs().sum() / 32
    wanted, grad_recon = torch.autograd.grad(loss, [model.last_layer.weight, output.recon])
    found = gan.last_layer_gradient(grad_recon, output.hidden, model.patchify)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9 * wanted.abs().max().item())


def test_adaptive_weight_is_the_limited_ratio_of_norms() -> None:
    nll = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    assert gan.adaptive_weight(nll, nll / 10, local=False).item() == pytest.approx(5 / (0.5 + 1e-4))
    assert gan.adaptive_weight(nll, torch.zeros(2, 2), local=True).item() == 1e4  # 5 / 1e-4, limited
    assert gan.adaptive_weight(torch.zeros(2, 2), nll, local=True).item() == 0.0

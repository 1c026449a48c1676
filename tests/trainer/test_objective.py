"""The reconstruction term against the released code's expression, perceptual part included."""

import copy
import itertools
import math

import pytest
import torch

from model.lpips import LPIPS
from tests.trainer.cases import global_batches
from trainer.objective import ReconstructionObjective, likelihood, values_per_frame

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_value_and_gradients_are_those_of_the_plain_expression(weight: float) -> None:
    torch.manual_seed(3)
    network = LPIPS().double()  # random weights: the expression is the same for any
    video, recon = global_batches()[0][:2].double(), global_batches()[1][:2].double().requires_grad_()
    logvar = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    found = ReconstructionObjective(weight, network if weight else None)(video, recon)
    judged = likelihood(found.error, logvar, values_per_frame(video))
    (by_recon,) = torch.autograd.grad(judged.by_error * found.error, recon)
    gradients = [by_recon, judged.by_logvar]

    frames, rebuilt = (clip.permute(0, 2, 1, 3, 4).reshape(-1, 3, 16, 16) for clip in (video, recon))
    error = (frames - rebuilt).abs() + weight * network(frames, rebuilt)  # [N, 1, 1, 1] spreads over the frame
    wanted = (error / logvar.exp() + logvar).sum() / frames.shape[0]
    torch.testing.assert_close(judged.nll, wanted.detach(), rtol=1e-9, atol=0)
    for ours, theirs in zip(gradients, torch.autograd.grad(wanted, [recon, logvar]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * theirs.abs().max().item())
    assert found.l1.item() == pytest.approx((frames - rebuilt).abs().mean().item(), rel=1e-9)
    assert found.mse.item() == pytest.approx((frames - rebuilt).square().mean().item(), rel=1e-9)
    assert (found.perceptual.item() > 0) == (weight > 0)


@pytest.mark.parametrize(
    ("logvar", "error", "slope"),
    [
        (-9.0, 1.0, 3072 - math.exp(9)),
        (-80.0, 1e-6, 0.0),
        (-80.0, 0.0, 0.0),
        (-80.0, 1.0, 3072 - math.exp(10)),
    ],
)
def test_a_logvar_below_its_floor_is_pushed_up_only(logvar: float, error: float, slope: float) -> None:
    floored = max(logvar, -10.0)
    found = likelihood(torch.tensor(error, dtype=torch.float64), torch.tensor(logvar, dtype=torch.float64), 3072)
    assert found.by_logvar.item() == pytest.approx(slope, rel=1e-9)
    assert found.by_error.item() == pytest.approx(math.exp(-floored), rel=1e-9)
    assert found.nll.item() == pytest.approx(error * math.exp(-floored) + 3072 * floored, rel=1e-9)


def test_the_mean_over_all_choices_of_frames_is_the_value_of_all_frames() -> None:
    """One frame, or two, of a clip: the expectation of the loss, and of its gradient, does not change."""
    torch.manual_seed(3)
    objective = ReconstructionObjective(0.3, LPIPS().double())
    video, recon = (batch[:2, :, :3].double() for batch in global_batches()[:2])
    recon.requires_grad_()

    def value_and_gradient(drawn: list[list[int]] | None) -> tuple[torch.Tensor, torch.Tensor]:
        found = objective(video, recon, drawn)
        return found.error.detach(), torch.autograd.grad(found.error, recon)[0]

    whole, gradient = value_and_gradient(None)
    for count in (1, 2):
        choices = [list(choice) for choice in itertools.combinations(range(3), count)]
        found = [value_and_gradient(list(pair)) for pair in itertools.product(choices, repeat=2)]
        values, gradients = (torch.stack(parts) for parts in zip(*found, strict=True))
        assert values.std() > 1e-5 * values.mean()  # the frames are not alike
        torch.testing.assert_close(values.mean(0), whole, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients.mean(0), gradient, rtol=0, atol=1e-12 * float(gradient.abs().max()))


def test_the_gradient_of_lpips_does_not_underflow_in_fp16() -> None:
    """The gradient that LPIPS adds to that of the plain error: in fp16 it is that of fp32, rounded and not lost."""
    torch.manual_seed(3)
    network = LPIPS()
    video, recon = (batch[:1, :, :2] for batch in global_batches()[:2])
    factor = torch.tensor(1e-7)

    def perceived(dtype: torch.dtype, scale: float | None = None) -> torch.Tensor:
        leaf = recon.clone().requires_grad_()
        objective = ReconstructionObjective(1.0, copy.deepcopy(network).work_in(dtype))
        objective.gradient_scale = scale or objective.gradient_scale
        plain = ReconstructionObjective(0.0, None)
        return objective.gradient(objective(video, leaf), leaf, factor) - plain.gradient(
            plain(video, leaf), leaf, factor
        )

    exact = perceived(torch.float32)
    error, unscaled = (
        float((found - exact).norm() / exact.norm())
        for found in (perceived(torch.float16), perceived(torch.float16, 1.0))
    )
    assert float(exact.abs().max()) < 2.0**-25, "half of the least fp16 number: any processor rounds all of it to 0"
    assert unscaled == 1
    assert error < 0.1

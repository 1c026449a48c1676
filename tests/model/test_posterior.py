"""The diagonal Gaussian against torch.distributions."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from model.posterior import DiagonalGaussian

pytestmark = pytest.mark.numeric


def moments() -> torch.Tensor:
    return torch.randn(3, 10, 4, 2, 2, generator=torch.Generator().manual_seed(0))


def test_kl_is_summed_over_all_but_the_batch() -> None:
    x = moments().double()
    mean, logvar = x[:, :5], x[:, 5:]
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).flatten(1).sum(1).mean()
    torch.testing.assert_close(DiagonalGaussian.from_moments(x).kl(), expected)


def test_a_draw_is_the_mean_and_the_noise_times_the_deviation() -> None:
    x = moments().double()
    mean, logvar = x[:, :5], x[:, 5:]
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    drawn = DiagonalGaussian.from_moments(x).sample(noise)
    expected = Normal(mean, (0.5 * logvar).exp()).icdf(Normal(0.0, 1.0).cdf(noise.double()))
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-9)


def test_fp64_stays_fp64() -> None:
    posterior = DiagonalGaussian.from_moments(moments().double())
    draw = posterior.sample(torch.ones(posterior.mean.shape))
    assert {part.dtype for part in (*posterior, draw, posterior.kl())} == {torch.float64}


def test_log_variance_is_clamped_and_fp32() -> None:
    posterior = DiagonalGaussian.from_moments(torch.tensor([[1.0, 100.0], [1.0, -100.0]], dtype=torch.bfloat16))
    assert posterior.logvar.flatten().tolist() == [20.0, -30.0]
    assert posterior.mean.dtype == torch.float32


def test_gradients_reach_mean_and_log_variance() -> None:
    x = moments().requires_grad_()
    DiagonalGaussian.from_moments(x).sample(torch.ones(3, 5, 4, 2, 2)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[:, :5], torch.ones_like(x.grad[:, :5]))
    assert (x.grad[:, 5:] != 0).all()

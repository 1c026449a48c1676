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


def test_draws_have_the_stated_mean_and_deviation() -> None:
    posterior = DiagonalGaussian(torch.full((200_000,), 2.0), torch.full((200_000,), -1.0))
    draws = posterior.sample(torch.Generator().manual_seed(1))
    torch.testing.assert_close(draws.mean().item(), 2.0, atol=0.01, rtol=0)
    torch.testing.assert_close(draws.std().item(), 2.718281828**-0.5, atol=0.01, rtol=0)


def test_fp64_stays_fp64_and_has_the_draws_of_fp32() -> None:
    """To the rounding of fp32 of values below 100."""
    single, double = DiagonalGaussian.from_moments(moments()), DiagonalGaussian.from_moments(moments().double())
    draws = [posterior.sample(torch.Generator().manual_seed(3)) for posterior in (single, double)]
    assert {part.dtype for part in (*double, draws[1], double.kl())} == {torch.float64}
    assert draws[0].abs().max() < 100
    assert (draws[0] - draws[1]).abs().max() < 100 * 2**-23


def test_log_variance_is_clamped_and_fp32() -> None:
    posterior = DiagonalGaussian.from_moments(torch.tensor([[1.0, 100.0], [1.0, -100.0]], dtype=torch.bfloat16))
    assert posterior.logvar.flatten().tolist() == [20.0, -30.0]
    assert posterior.mean.dtype == torch.float32


def test_gradients_reach_mean_and_log_variance() -> None:
    x = moments().requires_grad_()
    DiagonalGaussian.from_moments(x).sample(torch.Generator().manual_seed(2)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[:, :5], torch.ones_like(x.grad[:, :5]))
    assert (x.grad[:, 5:] != 0).all()


def test_one_generator_a_clip_makes_draws_independent_of_the_batch() -> None:
    posterior = DiagonalGaussian.from_moments(moments())

    def sources(seeds: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = posterior.sample(sources([7, 8, 9]))
    alone = DiagonalGaussian(posterior.mean[1:2], posterior.logvar[1:2]).sample(sources([8]))
    assert torch.equal(together[1:2], alone)


def test_each_clip_needs_a_source_of_its_own() -> None:
    gaussian = DiagonalGaussian.from_moments(torch.zeros(3, 4, 2))
    sources = [torch.Generator().manual_seed(n) for n in range(4)]
    assert gaussian.sample(sources[:3]).shape == (3, 2, 2)
    for wrong in (sources[:2], sources):
        with pytest.raises(ValueError, match="zip"):
            gaussian.sample(wrong)

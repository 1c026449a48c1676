"""What is said of latents, against torch.distributions; and a log step without the learnt scale."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from model.network import Posteriors
from model.posterior import DiagonalGaussian
from tests.trainer.cases import as_batch, global_batches, tiny_config
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks
from trainer.latent_terms import latent_terms


def posterior(*shape: int) -> DiagonalGaussian:
    return DiagonalGaussian(
        torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64).clamp(max=-1)
    )


def test_divergences_and_channels() -> None:
    torch.manual_seed(0)
    posteriors = Posteriors(posterior(3, 4, 2, 5, 5), posterior(3, 2, 8, 5), posterior(3, 2, 8, 5))
    terms = latent_terms(posteriors)
    for name, (mean, logvar) in zip(("structure", "dynamics_w", "dynamics_h"), posteriors, strict=True):
        divergence = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0))
        assert float(terms[f"latent_kl_{name}"]) == pytest.approx(float(divergence.sum()) / 3, rel=1e-12)
        assert float(terms[f"latent_off_{name}"]) == 0
        for channel in range(mean.shape[1]):
            of_channel = mean[:, channel].numpy()
            assert float(terms[f"latent_mean_{name}_{channel:02d}"]) == pytest.approx(of_channel.mean(), rel=1e-9)
            assert float(terms[f"latent_std_{name}_{channel:02d}"]) == pytest.approx(of_channel.std(), rel=1e-9)
    assert len(terms) == 3 * 2 + 2 * (4 + 2 + 2)


def test_a_latent_whose_posterior_is_the_prior_is_off_as_far_as_it_is() -> None:
    """Of the structure a quarter of the channels has collapsed, of dynamics_w all, of dynamics_h that of one clip."""
    torch.manual_seed(0)
    posteriors = Posteriors(posterior(2, 4, 2, 3, 3), posterior(2, 2, 8, 3), posterior(2, 2, 8, 3))
    for part in posteriors.structure:
        part[:, 1] = 0
    for part in posteriors.dynamics_w:
        part.mul_(1e-3)
    for part in posteriors.dynamics_h:
        part[0] = 0
    terms = latent_terms(posteriors)
    found = [float(terms[f"latent_off_{name}"]) for name in ("structure", "dynamics_w", "dynamics_h")]
    assert found == [0.25, 1.0, 0.0]


@pytest.mark.engines
def test_a_scale_that_does_not_learn_has_no_part_in_a_log_step(alone: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    method = Autoencoder(tiny_config("unused", "loss.learn_logvar=false"), alone)
    terms = method.step(as_batch(global_batches()[0]), 0, observed=True)
    assert "grad_norm_logvar" not in terms
    assert "update_logvar" not in terms
    assert {"grad_norm_decoder", "update_decoder"} <= terms.keys()

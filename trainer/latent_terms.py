"""What a log step says of the latents: how much each posterior tells, and whether parts of it tell nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from model.network import Posteriors

OFF = 0.01
"""Nats below which the divergence of one number's posterior from the prior counts as none: it says nothing of a clip.

Burda et al. 2016 ("Importance weighted autoencoders", section 5.2) take the same number for the variance of posterior
means; the divergence also sees a posterior that is narrower than the prior.
"""


@torch.no_grad()
def latent_terms(posteriors: Posteriors) -> dict[str, Tensor]:
    """Terms of one batch of clips, 0-dim, for each of the latents structure, dynamics_w and dynamics_h.

    latent_kl_NAME: the divergence from the prior in nats a clip; the three add up to `kl_loss` of the same clips.
    latent_off_NAME: the share of the latent's numbers whose divergence, averaged over the clips, is below `OFF`.
    latent_mean_NAME_CC, latent_std_NAME_CC: of the posterior means in channel CC, over clips and places.
    """
    terms: dict[str, Tensor] = {}
    for name, posterior in zip(Posteriors._fields, posteriors, strict=True):
        mean, logvar = posterior.mean, posterior.logvar
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)  # [B, channels, places...]
        terms[f"latent_kl_{name}"] = kl.sum() / len(kl)
        terms[f"latent_off_{name}"] = (kl.mean(dim=0) < OFF).float().mean()
        deviations, means = torch.std_mean(mean.transpose(0, 1).flatten(1), dim=1, correction=0)
        for channel in range(mean.shape[1]):
            terms[f"latent_mean_{name}_{channel:02d}"] = means[channel]
            terms[f"latent_std_{name}_{channel:02d}"] = deviations[channel]
    return terms

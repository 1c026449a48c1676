"""The diagonal Gaussian that each latent's posterior is, and its distance from the standard normal prior."""

from typing import NamedTuple

import torch
from torch import Tensor

from model.precision import at_least_fp32

# Kingma & Welling, appendix B, leaves log-variance free; the released code clamps it to this range.
LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0


class DiagonalGaussian(NamedTuple):
    """Independent normals of equal shape. A tuple, so that ZeRO-3's hooks find its tensors in a module's output."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "DiagonalGaussian":
        """Split [B, 2d, ...] into mean and log-variance along dimension 1, in fp32 if the network ran in 16 bits."""
        mean, logvar = at_least_fp32(moments).chunk(2, dim=1)
        return cls(mean, logvar.clamp(LOGVAR_MIN, LOGVAR_MAX))

    def sample(self, noise: Tensor) -> Tensor:
        """One reparametrised draw; gradients reach mean and log-variance.

        Args:
            noise: standard normal numbers of the mean's shape, of any floating-point type.
        """
        return torch.addcmul(self.mean, torch.exp(0.5 * self.logvar), noise.to(self.mean.dtype))

    def mode(self) -> Tensor:
        """The mean, which is also the most likely value."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1) in nats, a scalar: summed over all but the batch, then the mean over the batch."""
        total = 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar).sum()
        return total / self.mean.shape[0]

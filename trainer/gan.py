"""The adversarial losses, and the weight of the generator's.

There are three phases in generator steps t: no discriminator (t < start); the discriminator learns alone (warmup); the
generator's loss has an adversarial term whose weight rises linearly (ramp) to `weight`. The adaptive factor (VQGAN,
Esser et al. 2021, eq. 7) balances the two gradients at the decoder's last linear weight W. dL/dW =
patchify(dL/drecon)^T h needs h, which is W's input, and no W.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from model.precision import at_least_fp32
from trainer.config.objective import GeneratorLoss

RATIO_OFFSET = 1e-4  # of the released code: |d nll/dW| / (|d adv/dW| + 1e-4)
RATIO_LIMIT = 1e4


def generator_loss(logits_fake: Tensor, kind: GeneratorLoss) -> Tensor:
    """The generator's side.

    Hinge GAN: -mean D(recon). Non-saturating GAN (Goodfellow et al. 2014, section 3): -log sigmoid, as VidTok v1.1
    takes it, of the mean logit of each picture (2-D discriminator) or clip (3-D), then the mean over these.

    Args:
        logits_fake: [N, 1, ...], one row for each picture or clip.
        kind: which of the two.
    """
    if kind is GeneratorLoss.non_saturating:
        return F.softplus(-logits_fake.flatten(1).mean(dim=1)).mean()
    return -logits_fake.mean()


def hinge_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Hinge GAN, discriminator's side: (mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))) / 2."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def adversarial_gradient(logits_fake: Tensor, recon: Tensor, kind: GeneratorLoss) -> tuple[Tensor, Tensor]:
    """The generator's adversarial loss without graph, and its gradient with respect to the reconstruction.

    The graph of the logits is kept, because the discriminator's own backward uses it again.
    """
    loss = generator_loss(logits_fake, kind)
    (grad,) = torch.autograd.grad(loss, recon, retain_graph=True)
    return loss.detach(), grad


def lecam_loss(logits_real: Tensor, logits_fake: Tensor, means: Tensor) -> Tensor:
    """LeCam: keep each side's logits from running past the other side's running mean.

    Args:
        means: [2], running means of the real and of the fake logits.
    """
    return F.relu(logits_real - means[1]).square().mean() + F.relu(means[0] - logits_fake).square().mean()


def last_layer_gradient(grad_recon: Tensor, hidden: Tensor, patchify: Callable[[Tensor], Tensor]) -> Tensor:
    """dL/dW of the decoder's last linear layer from dL/drecon, [out, width], fp32 at least, without W.

    Args:
        grad_recon: dL/drecon [B, 3, T, H, W].
        hidden: input of the last linear layer [B, N, width].
        patchify: [B, 3, T, H, W] -> [B, N, out] in the layer's output order.
    """
    return torch.einsum("bno,bnw->ow", at_least_fp32(patchify(grad_recon)), at_least_fp32(hidden))


def adaptive_weight(grad_nll: Tensor, grad_adv: Tensor, local: bool) -> Tensor:
    """|d nll/dW| / (|d adv/dW| + 1e-4), at most 1e4; a 0-dim tensor without gradient.

    Both losses are means over clips, so the gradients averaged over ranks are those of the clips of all ranks together,
    and the ratio is then the one a single rank would get from the same clips.

    Args:
        grad_nll, grad_adv: from `last_layer_gradient`, on this rank's clips.
        local: keep the ratio to this rank's clips.
    """
    both = torch.stack([grad_nll, grad_adv])
    if not local and dist.get_world_size() > 1:
        dist.all_reduce(both)
        both /= dist.get_world_size()
    norms = torch.linalg.vector_norm(both.flatten(1), dim=1)
    return (norms[0] / (norms[1] + RATIO_OFFSET)).clamp(0.0, RATIO_LIMIT).detach()

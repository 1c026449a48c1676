"""When the discriminator joins, how loud it is, and what it is asked.

Three phases in generator steps t: nothing (t < start), the discriminator learns alone (warmup), and the generator hears
it with a weight that rises linearly (ramp) to `weight`. The adaptive factor (VQGAN, Esser et al. 2021, eq. 7) balances
the two gradients at the decoder's last linear weight W; dL/dW = patchify(dL/drecon)^T h needs h, W's input, and no W.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from model.precision import at_least_fp32

RATIO_OFFSET = 1e-4  # of the released code: |d nll/dW| / (|d adv/dW| + 1e-4)
RATIO_LIMIT = 1e4


def generator_loss(logits_fake: Tensor) -> Tensor:
    """Hinge GAN, generator's side: -mean D(recon)."""
    return -logits_fake.mean()


def hinge_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Hinge GAN, discriminator's side: (mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))) / 2."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


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

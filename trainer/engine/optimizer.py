"""The optimizer of one network, and the guard that skips a step whose gradient is not finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainer.config.learning import OptimizerConfig, OptimizerName
from trainer.engine.torch_private import norms, skip_step_where


class Guard:
    """Clips gradients and skips steps in fp32 at ZeRO 0, where DeepSpeed does neither; the host never waits.

    Attributes:
        norm: L2 norm of the last step's gradient before clipping, 0-dim on the device.
        skipped: 1 where the last step was skipped, else 0, 0-dim on the device.
        weights: the weights that had a gradient in the last step.
        norms: the L2 norms of their gradients, [len(weights)].
    """

    def __init__(self, clip: float) -> None:
        self.clip = clip
        self.norm: Tensor | None = None
        self.skipped: Tensor | None = None
        self.weights: list[nn.Parameter] = []
        self.norms: Tensor | None = None

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        self.weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        grads = [weight.grad for weight in self.weights if weight.grad is not None]
        self.norms = norms(grads)
        norm = torch.linalg.vector_norm(self.norms)
        self.norm = norm
        self.skipped = (~torch.isfinite(norm)).float()
        if self.clip > 0:
            nn.utils.clip_grads_with_norm_(self.weights, self.clip, norm)
        skip_step_where(optimizer, self.skipped)


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, guard: Guard | None
) -> torch.optim.Optimizer:
    """Adam or AdamW in torch's fused form, which needs no compiler; `guard` runs before each of its steps.

    The learning rate is 0 until `Engine.step` sets it, because some of DeepSpeed's wrappers take a step when they are
    built.
    """
    kind = torch.optim.AdamW if config.name is OptimizerName.adamw else torch.optim.Adam
    optimizer = kind(
        parameters, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )
    if guard is not None:
        optimizer.register_step_pre_hook(lambda self, args, kwargs: guard(self))
    return optimizer

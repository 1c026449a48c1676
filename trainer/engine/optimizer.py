"""The optimizer of one network, and the guard that leaves a step out."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from trainer.config.learning import OptimizerConfig, OptimizerName


class Guard:
    """Clip and skip without asking the device: the work of DeepSpeed's wrappers, for plain fp32 at ZeRO 0."""

    def __init__(self, clip: float) -> None:
        self.clip = clip
        self.norm: Tensor | None = None
        self.skipped: Tensor | None = None
        self.weights: list[nn.Parameter] = []  # those with a gradient in the last step
        self.norms: Tensor | None = None  # of their gradients

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        self.weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        grads = [weight.grad for weight in self.weights if weight.grad is not None]
        self.norms = torch.stack(torch._foreach_norm(grads))
        norm = torch.linalg.vector_norm(self.norms)
        self.norm = norm
        self.skipped = (~torch.isfinite(norm)).float()
        if self.clip > 0:
            factor = (self.clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(grads, factor)
        # torch's fused Adam leaves weights, moments and step count alone where this is 1 (it is GradScaler's channel).
        optimizer.found_inf = self.skipped  # type: ignore[attr-defined]


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, guard: Guard | None
) -> torch.optim.Optimizer:
    """Adam or AdamW in torch's fused form, which needs no compiler; `guard` runs before each of its steps.

    The learning rate is 0 until `Engine.step` sets it, because some wrappers take a step when they are built.
    """
    kind = torch.optim.AdamW if config.name is OptimizerName.adamw else torch.optim.Adam
    optimizer = kind(
        parameters, lr=0.0, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )
    if guard is not None:
        optimizer.register_step_pre_hook(lambda self, args, kwargs: guard(self))
    return optimizer

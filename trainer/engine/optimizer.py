"""The optimizer of one network, and the guard that skips a step whose gradient is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer.config.learning import Decay, OptimizerConfig, OptimizerName
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


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a weight multiplies what goes through the network: those of linear layers and of convolutions.

    Decay keeps such a weight from growing, which a norm behind it would hide. All other weights are added to something
    or scale it channel by channel, so that a pull towards 0 changes what the network computes: biases, norms, `logvar`,
    and also what is stored in two dimensions for convenience, the tables of scales, shifts and gates (`modulation`) and
    the learnt queries, which are positions.
    """
    return len(shape) >= 2 and name.rpartition(".")[2] == "weight"


def weight_groups(shapes: Mapping[str, Sequence[int]], decay: Decay) -> list[tuple[list[str], bool]]:
    """The optimizer's groups: the names of their weights, and whether these decay.

    Args:
        shapes: name -> shape of every weight that learns, in the order of the module.
        decay: with `matrices` these come first, then the others; a group without weights is left out.
    """
    if decay is Decay.all:
        return [(list(shapes), True)]
    matrices = [name for name, shape in shapes.items() if is_matrix(name, shape)]
    others = [name for name, shape in shapes.items() if not is_matrix(name, shape)]
    return [(names, decays) for names, decays in ((matrices, True), (others, False)) if names]


def build_optimizer(
    groups: Sequence[tuple[Sequence[nn.Parameter], bool]], config: OptimizerConfig, guard: Guard | None
) -> torch.optim.Optimizer:
    """Adam or AdamW in torch's fused form, which needs no compiler; `guard` runs before each of its steps.

    The learning rate is 0 until `Engine.step` sets it, because some of DeepSpeed's wrappers take a step when they are
    built.

    Args:
        groups: weights, and whether they decay.
        config: the settings.
        guard: clips gradients and skips steps where DeepSpeed does neither.
    """
    kind = torch.optim.AdamW if config.name is OptimizerName.adamw else torch.optim.Adam
    optimizer = kind(
        [{"params": weights, "weight_decay": config.weight_decay if decays else 0.0} for weights, decays in groups],
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    if guard is not None:
        optimizer.register_step_pre_hook(lambda self, args, kwargs: guard(self))
    return optimizer

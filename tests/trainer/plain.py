"""The trainer's own training step on plain PyTorch optimizers: its losses, weights and schedules, no DeepSpeed.

DeepSpeed's engines know no fp64. With an engine of a few lines in their place, `Autoencoder.step` runs in it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.autoencoder import Autoencoder
from trainer.config import TrainConfig
from trainer.distributed import Ranks


class PlainEngine:
    """What a training step wants from `trainer.engines.Engine`, on one rank."""

    loss_scale = None

    def __init__(self, module: nn.Module, settings: Any, clip: float, accumulation: int) -> None:
        self.module, self.clip, self.accumulation = module, clip, accumulation
        self.optimizer = torch.optim.AdamW(
            module.parameters(), betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
        )
        self.ended = 0
        self.norm = torch.zeros(())

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self, lr: float) -> None:
        self.ended += 1
        if self.ended % self.accumulation:
            return
        limit = self.clip or float("inf")
        self.norm = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def outcome(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.norm, torch.zeros((), device=device)


class PlainAutoencoder(Autoencoder):
    """`Autoencoder` on plain engines.

    Args:
        prepare: brings a network into the type and to the weights that it is to begin with.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, prepare: Callable[[nn.Module], nn.Module]) -> None:
        self.prepare = prepare
        super().__init__(config, ranks)

    def _engine(self, name: str, module: nn.Module, *_: Any) -> PlainEngine:  # type: ignore[override]
        config = self.config
        return PlainEngine(
            self.prepare(module), getattr(config.optim, name), config.optim.clip, self.accumulation
        )

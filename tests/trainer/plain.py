"""The trainer's own training step on plain PyTorch optimizers, in fp64: its losses, weights, schedules, no DeepSpeed.

DeepSpeed's engines know no fp64. With an engine of a few lines in their place, `Autoencoder.step` runs in it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tests.tools.rounding import Moved, store_in_fp32
from trainer import gan
from trainer.autoencoder import Autoencoder
from trainer.config.learning import OptimizerConfig
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.engine_settings import EngineSettings


class PlainEngine:
    """What a training step wants from `trainer.engine.engine.Engine`, on one rank.

    Args:
        module: the network.
        optimizer: settings of its AdamW.
        clip: the gradient norm's limit, or 0.
        accumulation: micro-batches of a step.
        stored: keep the weights in fp32 between the steps.
    """

    loss_scale = None

    def __init__(
        self, module: nn.Module, *, optimizer: OptimizerConfig, clip: float, accumulation: int, stored: bool
    ) -> None:
        self.module, self.clip, self.accumulation, self.stored = module, clip, accumulation, stored
        settings = {"betas": optimizer.betas, "eps": optimizer.eps, "weight_decay": optimizer.weight_decay}
        self.optimizer = torch.optim.AdamW(module.parameters(), **settings)
        self.micro_batches = 0
        self.norm = torch.zeros(())

    def __call__(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self, lr: float) -> None:
        self.micro_batches += 1
        if self.micro_batches % self.accumulation:
            return
        self.norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip or torch.inf)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.stored:
            store_in_fp32(self.module.parameters())

    def exact(self, name: str) -> Tensor | None:
        """None, because the working weights are the exact ones."""
        return None

    def outcome(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.norm, torch.zeros((), device=device)


class PlainAutoencoder(Autoencoder):
    """`Autoencoder` in fp64.

    Args:
        moved: brings each network into fp64, and moves the weights it begins with.
        stored: keep the weights in fp32 between the steps, as fp32 training does.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, moved: Moved, stored: bool) -> None:
        def make_engine(name: str, module: nn.Module, settings: EngineSettings) -> Any:
            return PlainEngine(
                moved.weights(module),
                optimizer=settings.optimizer,
                clip=settings.optim.clip,
                accumulation=settings.accumulation,
                stored=stored,
            )

        super().__init__(config, ranks, make_engine=make_engine)

    def unheard(self, video: Tensor) -> dict[str, float]:
        """The adversarial terms before the generator hears the discriminator, by the step's own functions."""
        assert self.discriminator is not None
        recon, hidden, _, logvar, _ = self.generator(video, None)
        leaf = recon.detach().requires_grad_()
        error = self.reconstruction(video, leaf).error * torch.exp(-logvar.detach()).reshape(())
        (grad,) = torch.autograd.grad(error, leaf)
        adversarial, grad_adv = gan.adversarial_gradient(
            self.discriminator.module.judge(leaf), leaf, self.config.gan.generator_loss
        )
        ratio = self._adaptive_weight(grad, grad_adv, hidden)
        return {"adversarial_loss": float(adversarial), "adversarial_weight": self.config.gan.weight * float(ratio)}

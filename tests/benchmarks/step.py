"""(a) Training step: the model's arithmetic in a generator and discriminator step, over this machine's matmul rate.

Width 768, depth 4+4, 16 x 224 x 224, batch 1, fp32, 2 threads, no LPIPS. Only 6 x block parameters x tokens counts as
work: attention products, latent networks, losses, optimizers and the whole discriminator count as nothing but time. The
step is that of trainer/autoencoder.py, with plain optimizers in place of the engines. Both sides take their best of
interleaved rounds. On a busy machine read `ratio_cpu_seconds`, the same in processor seconds.

    python -m tests.benchmarks.step [--profile]     # with the table of docs/performance.md
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from model.discriminator import DiscriminatorConfig, build_discriminator
from model.vidtwin import VidTwin, VidTwinConfig
from trainer import gan
from trainer.objective import ReconstructionObjective, nll, values_per_frame

THREADS = 2
ROUNDS = 6
MATRIX = 4096
KL_WEIGHT = 0.001
GAN_WEIGHT = 0.05
CONFIG = VidTwinConfig(depth=4)


class TrainingStep:
    """One micro-batch through both networks and their optimizers, the discriminator on and learning."""

    def __init__(self, config: VidTwinConfig) -> None:
        torch.manual_seed(0)
        self.vidtwin = VidTwin(config)
        self.discriminator = build_discriminator(DiscriminatorConfig())
        self.logvar = torch.nn.Parameter(torch.zeros(1))
        generator = [*self.vidtwin.parameters(), self.logvar]
        self.generator_optimizer = torch.optim.AdamW(generator, lr=1e-4, betas=(0.9, 0.99), fused=True)
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=1e-4, betas=(0.9, 0.99), fused=True
        )
        self.reconstruction = ReconstructionObjective(0.0, None, torch.float32)
        self.video = torch.rand(1, 3, config.frames, config.image_size, config.image_size) * 2 - 1

    def __call__(self) -> None:
        recon, hidden, _, kl = self.vidtwin(self.video)
        leaf = recon.detach().requires_grad_()
        scale = self.logvar.reshape(())
        error = self.reconstruction(self.video, leaf).error
        (grad,) = torch.autograd.grad(error * torch.exp(-scale.detach()), leaf)
        heard = self.discriminator(leaf)
        (grad_adv,) = torch.autograd.grad(gan.generator_loss(heard), leaf, retain_graph=True)
        factor = GAN_WEIGHT * self._adaptive_weight(grad, grad_adv, hidden)
        nll_loss = nll(error.detach(), scale, values_per_frame(self.video))
        ((recon * (grad + factor * grad_adv)).sum() + KL_WEIGHT * kl + nll_loss).backward()
        self.generator_optimizer.step()
        self.generator_optimizer.zero_grad()

        gan.hinge_loss(self.discriminator(self.video), heard).backward()
        self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad()

    def _adaptive_weight(self, grad: Tensor, grad_adv: Tensor, hidden: Tensor) -> Tensor:
        gradients = (gan.last_layer_gradient(g, hidden, self.vidtwin.patchify) for g in (grad, grad_adv))
        return gan.adaptive_weight(*gradients, local=True)


def _seconds(action: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def run(rounds: int = ROUNDS, threads: int = THREADS) -> dict[str, Any]:
    """One line of `make bench`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        step = TrainingStep(CONFIG)
        a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
        step()  # the first step allocates
        products: list[tuple[float, float]] = []
        steps: list[tuple[float, float]] = []
        for _ in range(rounds):
            products += [_seconds(lambda: a @ b) for _ in range(3)]
            steps.append(_seconds(step))
    finally:
        torch.set_num_threads(before)
    product, product_cpu = (min(column) for column in zip(*products, strict=True))
    seconds, seconds_cpu = (min(column) for column in zip(*steps, strict=True))
    work, limit_work = step.vidtwin.flops_per_clip(), 2 * MATRIX**3
    return {
        "name": "(a) training step",
        "unit": "GFLOP/s",
        "value": work / seconds / 1e9,
        "limit": limit_work / product / 1e9,
        "limit_is": f"fp32 matmul of {MATRIX}, best of {len(products)}",
        "ratio": work / seconds / (limit_work / product),
        "target": 0.55,
        "ratio_cpu_seconds": work / seconds_cpu / (limit_work / product_cpu),
        "seconds": seconds,
        "seconds_each": [round(wall, 2) for wall, _ in steps],
        "limit_each": [round(limit_work / wall / 1e9, 1) for wall, _ in products],
        "reference": {"official code": 0.43},
    }


def _profile() -> None:
    """Where one step's time goes, by operator."""
    torch.set_num_threads(THREADS)
    step = TrainingStep(CONFIG)
    step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        step()
    print(record.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=40))


if __name__ == "__main__":
    if "--profile" in sys.argv:
        _profile()
    else:
        print(run())

"""(a) Training step: the model's arithmetic in a generator and discriminator step, over this machine's matmul rate.

Width 768, depth 4+4, 16 x 224 x 224, batch 1, fp32, 2 threads, no LPIPS. Only 6 x block parameters x tokens counts as
work: attention products, latent networks, losses, optimizers and the whole discriminator count as nothing but time. The
step is that of trainer/autoencoder.py, with plain optimizers in place of the engines. The limit is what products of two
matrices keep up for as long as a step takes, measured before and after each step, because a machine's rate for a
second is not its rate for twenty; the ratio is the median over rounds. On a busy machine read `ratio_cpu_seconds`, the
same in processor seconds; `ratio_all_work` counts the products, convolutions and attention of all of the step.

    python -m tests.benchmarks.step [--profile]     # with the table of docs/performance.md
"""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from model.config import DiscriminatorConfig, VidTwinConfig
from model.discriminator import build_discriminator
from model.noise import draw_noise
from model.vidtwin import VidTwin
from trainer import gan
from trainer.config.objective import GeneratorLoss
from trainer.estimate.meter import Meter
from trainer.objective import ReconstructionObjective, likelihood, values_per_frame

THREADS = 2
ROUNDS = 4
MATRIX = 4096
PRODUCTS = 8  # a stretch; two stretches take about as long as a step
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
        self.reconstruction = ReconstructionObjective(0.0, None)
        self.video = torch.rand(1, 3, config.frames, config.image_size, config.image_size) * 2 - 1

    def __call__(self) -> None:
        recon, hidden, _, kl = self.vidtwin(self.video, draw_noise(self.vidtwin.config, 1, self.vidtwin.config.frames))
        leaf = recon.detach().requires_grad_()
        error = self.reconstruction(self.video, leaf).error
        found = likelihood(error.detach(), self.logvar.detach().reshape(()), values_per_frame(self.video))
        (grad,) = torch.autograd.grad(error * found.by_error, leaf)
        heard = self.discriminator(leaf)
        (grad_adv,) = torch.autograd.grad(gan.generator_loss(heard, GeneratorLoss.hinge), leaf, retain_graph=True)
        factor = GAN_WEIGHT * self._adaptive_weight(grad, grad_adv, hidden)
        by_logvar = found.by_logvar * self.logvar.reshape(())
        ((recon * (grad + factor * grad_adv)).sum() + KL_WEIGHT * kl + by_logvar).backward()
        self.generator_optimizer.step()
        self.generator_optimizer.zero_grad()

        gan.hinge_loss(self.discriminator(self.video), heard).backward()
        self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad()

    def _adaptive_weight(self, grad: Tensor, grad_adv: Tensor, hidden: Tensor) -> Tensor:
        gradients = (gan.last_layer_gradient(g, hidden, self.vidtwin.patchify) for g in (grad, grad_adv))
        return gan.adaptive_weight(*gradients, local=True)


def seconds(action: Callable[[], Any]) -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


class Round(NamedTuple):
    """One step between two stretches of matrix products; seconds by the wall clock and of the processor."""

    step: float
    step_cpu: float
    product: float  # one product, on average
    product_cpu: float


def _round(step: Callable[[], Any], a: Tensor, b: Tensor) -> Round:
    def stretch() -> tuple[float, float]:
        return seconds(lambda: [a @ b for _ in range(PRODUCTS)])

    before, (wall, cpu), after = stretch(), seconds(step), stretch()
    return Round(wall, cpu, *((x + y) / (2 * PRODUCTS) for x, y in zip(before, after, strict=True)))


def run(rounds: int = ROUNDS, threads: int = THREADS) -> dict[str, Any]:
    """One line of `make bench`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        step = TrainingStep(CONFIG)
        a, b = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
        with Meter() as meter:
            step()  # the first step allocates
        measured = [_round(step, a, b) for _ in range(rounds)]
    finally:
        torch.set_num_threads(before)
    work, product_work = step.vidtwin.flops_per_clip(), 2 * MATRIX**3
    ratios = [work / r.step / (product_work / r.product) for r in measured]
    return {
        "name": "(a) training step",
        "unit": "GFLOP/s",
        "value": work / median(r.step for r in measured) / 1e9,
        "limit": product_work / median(r.product for r in measured) / 1e9,
        "limit_is": f"fp32 matmul of {MATRIX}, kept up for {2 * PRODUCTS} products around each step",
        "ratio": median(ratios),
        "target": 0.55,
        "ratio_cpu_seconds": median(work / r.step_cpu / (product_work / r.product_cpu) for r in measured),
        "ratio_all_work": median(meter.flops / r.step / (product_work / r.product) for r in measured),
        "ratio_each": [round(ratio, 3) for ratio in ratios],
        "seconds_each": [round(r.step, 2) for r in measured],
        "limit_each": [round(product_work / r.product / 1e9, 1) for r in measured],
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

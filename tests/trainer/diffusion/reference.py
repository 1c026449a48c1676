"""The training of a DiT a second time, in plain PyTorch on one process and in fp64: no DeepSpeed, no trainer code.

Draws, noise schedules and losses are written down again from their definitions (docs/generation.md).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.dit import DiT
from model.dit_config import Conditioning, DiTConfig
from model.dit_parts import ClassCondition, Condition, TextCondition
from model.network import Latents
from tests.tools.rounding import Moved, Results, store_in_fp32, with_bounds
from tests.trainer.diffusion.cases import GLOBAL_BATCH, SPACE, STATISTICS, STEPS, Latent, latents


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run that the reference understands, by its own names."""

    condition: str = "none"  # or "class", "text"
    flow: bool = False
    gamma: float = 0.0
    zero_snr: bool = False
    structure_share: float | None = None
    qk_norm: bool = False
    drop: float = 0.2

    def words(self) -> list[str]:
        """The same as settings of the trainer."""
        return [
            f"dit.condition={self.condition}",
            f"dit.qk_norm={str(self.qk_norm).lower()}",
            f"process.objective={'flow' if self.flow else 'x0'}",
            f"process.zero_terminal_snr={str(self.zero_snr).lower()}",
            f"loss.min_snr_gamma={self.gamma}",
            f"loss.condition_drop={self.drop}",
            *(["data.text=unused"] if self.condition == "text" else []),
            *([] if self.structure_share is None else [f"loss.structure_share={self.structure_share}"]),
        ]


def drawn(seed: int, step: int, key: str, purpose: int = 101) -> tuple[float, float, int]:
    """(quantile of the time, number that decides the drop, seed of the noise) of a clip."""
    low, high = np.frombuffer(hashlib.sha256(key.encode()).digest()[:16], "<u8")
    counter = np.array([0, step, low, high], np.uint64)
    words = np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=counter).random_raw(3)
    time, drop, noise = (int(word) for word in words)
    return ((time >> 12) + 0.5) / 2**52, ((drop >> 12) + 0.5) / 2**52, noise >> 1


def noise_of(seed: int) -> Latents:
    """The noise of one clip."""
    source = torch.Generator().manual_seed(seed)
    return Latents(*(torch.randn(shape, generator=source) for shape in (SPACE.structure_shape, SPACE.dynamics_shape)))


def alpha_bar(recipe: Recipe, step: int) -> float:
    """What step `step` of 1000 leaves of the variance; linear betas."""
    logs = [math.log1p(-(1e-4 + (0.02 - 1e-4) * t / 999)) for t in range(1000)]
    roots = [math.exp(0.5 * math.fsum(logs[: t + 1])) for t in (0, step, 999)]
    if not recipe.zero_snr:
        return roots[1] ** 2
    return ((roots[1] - roots[2]) * roots[0] / (roots[0] - roots[2])) ** 2


def flow_time(quantile: float) -> float:
    """Logit-normal, shifted by the size of the latents."""
    time = 1 / (1 + math.exp(-NormalDist().inv_cdf(quantile)))
    numbers = math.prod(SPACE.structure_shape) + math.prod(SPACE.dynamics_shape)
    shift = math.sqrt(numbers / 4096)
    return shift * time / (1 + (shift - 1) * time)


def looked_at(recipe: Recipe, clean: Latents, noise: Latents, quantile: float) -> tuple[Latents, float, Latents, float]:
    """Of one clip: what the network sees, the time it is told, what it should say, and the weight of its loss."""
    if recipe.flow:
        time = flow_time(quantile)
        seen = Latents(*((1 - time) * x + time * eps for x, eps in zip(clean, noise, strict=True)))
        return seen, 1000 * time, Latents(*(eps - x for x, eps in zip(clean, noise, strict=True))), 1.0
    step = int(quantile * 1000)
    bar = alpha_bar(recipe, step)
    seen = Latents(*(math.sqrt(bar) * x + math.sqrt(1 - bar) * eps for x, eps in zip(clean, noise, strict=True)))
    return seen, float(step), clean, min(bar / (1 - bar), recipe.gamma) if recipe.gamma else 1.0


def normalised(batch: Latent, moved: Moved) -> list[Latents]:
    """Each clip of a batch, normalised in fp32 and then made fp64."""
    found = []
    for structure, dynamics in zip(batch.structure, batch.dynamics, strict=True):
        parts = []
        halves = dict(zip(("dynamics_w", "dynamics_h"), dynamics.chunk(2, dim=-1), strict=True))
        for kind, values in ({"structure": structure} | halves).items():
            mean, deviation = (
                torch.tensor(numbers).reshape(-1, *[1] * (values.dim() - 1))
                for numbers in (STATISTICS[kind].mean, STATISTICS[kind].deviation)
            )
            parts.append(moved((values - mean) / deviation))
        found.append(Latents(parts[0], torch.cat(parts[1:], dim=-1)))
    return found


def condition_of(recipe: Recipe, batch: Latent, place: int, drop: bool) -> Condition:
    """Of one clip."""
    if recipe.condition == "class":
        return ClassCondition(torch.tensor([-1 if drop else SPACE.classes.index(batch.labels[place])]))
    if recipe.condition == "text":
        some = slice(place, place + 1)
        return TextCondition(batch.text[some].double(), batch.text_mask[some], torch.tensor([not drop]))
    return None


def clip_loss(
    recipe: Recipe, dit: nn.Module, batch: Latent, clips: list[Latents], place: int, draws: tuple[float, float, int]
) -> tuple[Tensor, Tensor]:
    """Loss of the structure and of the dynamics of one clip."""
    quantile, drop, seed = draws
    noise = Latents(*(part.double() for part in noise_of(seed)))
    seen, time, target, weight = looked_at(recipe, clips[place], noise, quantile)
    condition = condition_of(recipe, batch, place, drop < recipe.drop)
    said = dit(seen.structure[None], seen.dynamics[None], torch.tensor([time], dtype=torch.float64), condition)
    structure, dynamics = (
        weight * (part[0] - wanted).square().mean() for part, wanted in zip(said, target, strict=True)
    )
    return structure, dynamics


def share_of(recipe: Recipe) -> float:
    """The structure's share of the loss."""
    numbers = math.prod(SPACE.structure_shape), math.prod(SPACE.dynamics_shape)
    return numbers[0] / sum(numbers) if recipe.structure_share is None else recipe.structure_share


def dit_of(recipe: Recipe, weights: dict[str, Tensor]) -> DiT:
    """The network with these weights, in fp32."""
    config = DiTConfig(
        width=24, depth=2, heads=2, class_width=5, condition=Conditioning(recipe.condition), qk_norm=recipe.qk_norm
    )
    dit = DiT(config, SPACE)
    dit.load_state_dict(weights)
    return dit


def _train(recipe: Recipe, initial: dict[str, Tensor], moved: Moved) -> Results:
    torch.set_num_threads(1)
    dit = dit_of(recipe, initial)
    moved.weights(dit)
    weights = list(dit.parameters())
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-2)
    averages = {name: weight.detach().clone() for name, weight in dit.named_parameters()}
    found: dict[str, Any] = {}
    for step in range(STEPS):
        batch = latents(step)
        clips = normalised(batch, moved)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, step / 2)
        with moved.passing(dit):
            losses = [
                clip_loss(recipe, dit, batch, clips, place, drawn(0, step, batch.keys[place]))
                for place in range(GLOBAL_BATCH)
            ]
            structure, dynamics = (torch.stack(some).mean() for some in zip(*losses, strict=True))
            total = share_of(recipe) * structure + (1 - share_of(recipe)) * dynamics
            gradients = torch.autograd.grad(total, weights)
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient * min(1.0, 0.5 / (float(norm) + 1e-6))
        optimizer.step()
        store_in_fp32(weights)
        kept = min(0.75, (1 + step) / (10 + step))
        averages = {name: kept * averages[name] + (1 - kept) * weight for name, weight in dit.named_parameters()}
        terms = {"total_loss": total, "loss_structure": structure, "loss_dynamics": dynamics, "grad_norm_dit": norm}
        found |= {f"step {step} {name}": value.detach() for name, value in terms.items()}
    found |= {f"final {name}": weight.detach().clone() for name, weight in dit.named_parameters()}
    return found | {f"average {name}": value.detach() for name, value in averages.items()}


def reference_of(recipe: Recipe, initial: dict[str, Tensor]) -> tuple[Results, dict[str, float]]:
    """Terms of each step, final weights and their average, in fp64, and how far fp32 may be from each."""
    return with_bounds(lambda moved: _train(recipe, initial, moved))

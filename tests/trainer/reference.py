"""The training step a second time, in plain PyTorch on one process and in fp64: no DeepSpeed, no trainer code.

It follows the released code's way: every loss is differentiated through the network's own graph, the adaptive weight
comes from the last layer's weight, and gradients of the ranks' micro-batches are averaged by hand. Between the steps
its weights are kept in fp32, as the trainer's are; tests/tools/rounding.py says how far those may be from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import DiscriminatorConfig, VidTwinConfig
from model.discriminator import build_discriminator
from model.noise import Noise, draw_noise
from model.vidtwin import VidTwin, VidTwinOutput
from tests.tools.rounding import LEAST_SHARE, SEEDS, Moved, Results, allow_for_kinks, store_in_fp32, with_bounds


@dataclass(kw_only=True)
class Recipe:
    """The settings of a run that the reference understands, by its own names."""

    model: VidTwinConfig
    discriminator: DiscriminatorConfig
    seed: int = 0
    lr: float = 1e-3
    warmup: int = 2
    eps: float = 1e-6
    weight_decay: float = 1e-2
    clip: float = 0.5
    kl_weight: float = 1e-2
    start: int = 2
    alone: int = 1
    ramp: int = 2
    weight: float = 0.5
    lecam_weight: float = 0.1
    lecam_decay: float = 0.75  # not 0.5, at which it and what it leaves are the same
    local_weight: bool = False
    decay: str = "all"  # or "matrices"
    kl_warmup: int = 0
    logvar: float = 0.0
    learn_logvar: bool = True
    generator_loss: str = "hinge"  # or "non_saturating"
    frozen: tuple[str, ...] = ()  # first words of the names of VidTwin's weights that do not learn


def noise_sources(seed: int, step: int, first: int, count: int) -> list[torch.Generator]:
    """docs/training_scaling.md: a clip's noise is keyed by seed, step and its place in the global batch."""
    words = [np.random.SeedSequence([seed, step, first + i]).generate_state(1, np.uint64)[0] for i in range(count)]
    return [torch.Generator().manual_seed(int(word >> np.uint64(1))) for word in words]


class _Training:
    """The networks, the optimizers and LeCam's means of one training.

    Args:
        initial: weights of `vidtwin` and `discriminator`.
        moved: what all initial weights and all videos go through.
    """

    def __init__(self, recipe: Recipe, initial: dict[str, dict[str, Tensor]], moved: Moved) -> None:
        self.recipe, self.moved = recipe, moved
        self.vidtwin, self.discriminator = VidTwin(recipe.model), build_discriminator(recipe.discriminator)
        self.vidtwin.load_state_dict(initial["vidtwin"])
        self.discriminator.load_state_dict(initial["discriminator"])
        moved.weights(self.vidtwin)
        moved.weights(self.discriminator)
        self.logvar = nn.Parameter(torch.full((1,), recipe.logvar, dtype=torch.float64))
        options = {"lr": recipe.lr, "betas": (0.9, 0.99), "eps": recipe.eps, "weight_decay": recipe.weight_decay}
        learning = [p for name, p in self.vidtwin.named_parameters() if not name.startswith(recipe.frozen or "-")]
        self.of_generator = learning + ([self.logvar] if recipe.learn_logvar else [])
        self.of_discriminator = list(self.discriminator.parameters())
        decaying = _decaying(recipe, self.vidtwin, self.discriminator)
        self.optimizer_g = torch.optim.AdamW(_groups(self.of_generator, decaying), **options)
        self.optimizer_d = torch.optim.AdamW(_groups(self.of_discriminator, decaying), **options)
        self.lecam_means = torch.zeros(2, dtype=torch.float64)
        self.terms: dict[str, list[float]] = {}

    def note(self, **values: Tensor) -> None:
        """Add values to the step's terms."""
        for name, value in values.items():
            self.terms.setdefault(name, []).append(float(value.detach()))

    def step(self, batch: Tensor, step: int, ranks: int, accumulation: int) -> dict[str, float]:
        """Train on a global batch [G, 3, T, H, W]; the terms, averaged over it."""
        recipe = self.recipe
        for group in self.optimizer_g.param_groups + self.optimizer_d.param_groups:
            group["lr"] = recipe.lr * min(1.0, step / recipe.warmup)
        sums_g = [torch.zeros_like(p) for p in self.of_generator]
        sums_d = [torch.zeros_like(p) for p in self.of_discriminator]
        self.terms = {}
        with self.moved.passing(self.vidtwin, self.discriminator):
            for index in range(accumulation):
                self._micro_batches(batch, step, index, (ranks, accumulation), sums_g, sums_d)
        self.note(grad_norm_generator=_update(self.optimizer_g, self.of_generator, sums_g, recipe.clip))
        if step >= recipe.start:
            norm = _update(self.optimizer_d, self.of_discriminator, sums_d, recipe.clip)
            self.note(grad_norm_discriminator=norm)
            logits = torch.tensor([np.mean(self.terms["logits_real"]), np.mean(self.terms["logits_fake"])])
            self.lecam_means = recipe.lecam_decay * self.lecam_means + (1 - recipe.lecam_decay) * logits
        return {name: float(np.mean(values)) for name, values in self.terms.items()}

    def _micro_batches(
        self,
        batch: Tensor,
        step: int,
        index: int,
        division: tuple[int, int],
        sums_g: list[Tensor],
        sums_d: list[Tensor],
    ) -> None:
        """Add the gradients of micro-batch `index` of every rank; `division` is ranks and accumulation."""
        recipe, (ranks, accumulation) = self.recipe, division
        heard = step - recipe.start - recipe.alone
        loudness = recipe.weight * min(1.0, heard / recipe.ramp) if heard >= 0 else 0.0
        kl_weight = recipe.kl_weight * min(1.0, step / recipe.kl_warmup if recipe.kl_warmup else 1.0)
        micro = len(batch) // ranks // accumulation
        parts = []
        for rank in range(ranks):
            first = (rank * accumulation + index) * micro
            video = batch[first : first + micro]
            sources = noise_sources(recipe.seed, step, first, micro)
            noise = draw_noise(recipe.model, micro, video.shape[2], source=sources)
            parts.append(_generated(recipe, self.vidtwin, self.discriminator, self.logvar, video, noise))
        ratios = _ratios(recipe, self.vidtwin.last_layer.weight, parts) if loudness else [0.0] * ranks
        for (video, output, nll, adversarial, error), ratio in zip(parts, ratios, strict=True):
            total = nll + kl_weight * output.kl + loudness * ratio * adversarial
            _add(sums_g, torch.autograd.grad(total, self.of_generator, retain_graph=True), ranks * accumulation)
            self.note(total_loss=total, nll_loss=nll, kl_loss=output.kl, l1=error.mean())
            if loudness:
                self.note(adversarial_loss=adversarial, adversarial_weight=torch.tensor(loudness * ratio))
            if step >= recipe.start:
                hinge, lecam, real, fake = _judged(self.discriminator, video, output.recon.detach(), self.lecam_means)
                loss = hinge + recipe.lecam_weight * lecam
                _add(sums_d, torch.autograd.grad(loss, self.of_discriminator), ranks * accumulation)
                self.note(disc_loss=hinge, lecam_loss=lecam, logits_real=real.mean(), logits_fake=fake.mean())


def run_reference(
    recipe: Recipe,
    initial: dict[str, dict[str, Tensor]],
    batches: list[Tensor],
    ranks: int,
    accumulation: int,
    moved: Moved,
) -> tuple[list[dict[str, float]], dict[str, dict[str, Tensor]]]:
    """Train on global batches [G, 3, T, H, W], dealt to ranks and micro-batches in order.

    Args:
        moved: what all initial weights and all videos go through.
    Returns:
        Terms of each step, averaged over the global batch, and the final weights of vidtwin, discriminator and logvar.
    """
    torch.set_num_threads(1)  # tensors this small only lose by threads
    training = _Training(recipe, initial, moved)
    rows = [training.step(batch, step, ranks, accumulation) for step, batch in enumerate(map(moved, batches))]
    weights = {
        "vidtwin": training.vidtwin.state_dict(),
        "discriminator": training.discriminator.state_dict(),
        "logvar": {"logvar": training.logvar.data},
    }
    return rows, weights


def _decaying(recipe: Recipe, *networks: nn.Module) -> set[nn.Parameter] | None:
    """The weights of linear layers and convolutions, if only these decay; None where all weights do."""
    if recipe.decay == "all":
        return None
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return {part.weight for network in networks for part in network.modules() if isinstance(part, layers)}


def _groups(weights: list[nn.Parameter], decaying: set[nn.Parameter] | None) -> list[dict]:
    if decaying is None:
        return [{"params": weights}]
    others = [weight for weight in weights if weight not in decaying]
    return [{"params": [w for w in weights if w in decaying]}, {"params": others, "weight_decay": 0.0}]


def _generated(
    recipe: Recipe, vidtwin: VidTwin, discriminator: nn.Module, logvar: Tensor, video: Tensor, noise: Noise
) -> tuple[Tensor, VidTwinOutput, Tensor, Tensor, Tensor]:
    """A rank's clips, what VidTwin makes of them, and its losses: likelihood, adversarial, and error by pixel."""
    output = vidtwin(video, noise)
    frames = video.shape[0] * video.shape[2]
    error = (output.recon - video).abs()
    nll = ((error / logvar.exp() + logvar).sum() / frames).squeeze()
    logits = discriminator(output.recon)
    if recipe.generator_loss == "hinge":
        return video, output, nll, -logits.mean(), error
    real = torch.sigmoid(torch.stack([picture.mean() for picture in logits]))
    return video, output, nll, -real.log().mean(), error


def _judged(
    discriminator: nn.Module, video: Tensor, recon: Tensor, lecam_means: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hinge loss and LeCam term of the discriminator, and its logits of real and of generated clips."""
    real, fake = discriminator(video), discriminator(recon)
    hinge = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    lecam = (F.relu(real - lecam_means[1]) ** 2).mean() + (F.relu(lecam_means[0] - fake) ** 2).mean()
    return hinge, lecam, real, fake


def _ratios(recipe: Recipe, last: Tensor, parts: list) -> list[float]:
    """|d nll / d W| / (|d adversarial / d W| + 1e-4): of each rank's clips, or of the clips of all ranks together."""
    gradients = [
        [torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (part[2], part[3])] for part in parts
    ]
    if not recipe.local_weight:
        mean = [torch.stack(column).mean(0) for column in zip(*gradients, strict=True)]
        gradients = [mean] * len(parts)
    return [float(nll.norm() / (adversarial.norm() + 1e-4)) for nll, adversarial in gradients]


def _add(sums: list[Tensor], gradients: tuple[Tensor, ...], count: int) -> None:
    for total, gradient in zip(sums, gradients, strict=True):
        total += gradient / count


def _update(optimizer: torch.optim.Optimizer, parameters: list, gradients: list[Tensor], clip: float) -> Tensor:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    store_in_fp32(parameters)
    return norm


@dataclass(kw_only=True)
class Reference:
    """A training of `run_reference`, and how far the same in fp32 may be from it.

    Rows are the terms of each step. Results are these and the final weights, by names such as "step 3 kl_loss" and
    "final vidtwin.patch_in.weight"; bounds have the same names.
    """

    rows: list[dict[str, float]]
    results: Results
    bounds: dict[str, float]


def reference_of(
    recipe: Recipe,
    initial: dict[str, dict[str, Tensor]],
    batches: list[Tensor],
    ranks: int,
    accumulation: int,
    seeds: Sequence[int] = SEEDS,
) -> Reference:
    """Train the reference as it is, and moved (see tests/tools/rounding.py); without seeds its bounds mean nothing."""
    trainings: list[list[dict[str, float]]] = []

    def compute(moved: Moved) -> Results:
        rows, parts = run_reference(recipe, initial, batches, ranks, accumulation, moved)
        trainings.append(rows)
        final = {
            f"{part}.{name}": value for part in ("vidtwin", "discriminator") for name, value in parts[part].items()
        }
        return as_results(rows, final | parts["logvar"])

    exact, bounds = with_bounds(compute, seeds)
    allow_for_kinks(exact, bounds, recipe.weight)
    # Where a gradient is 0 (a key's bias) or a sum that cancels, Adam divides its rounding by its own size, and what
    # the inputs are moved by does not show how large that is: no weight is held to less than this share of its way.
    way = sum(recipe.lr * min(1.0, step / recipe.warmup) for step in range(len(batches)))
    for name in exact:
        if name.startswith("final "):
            bounds[name] = max(bounds[name], LEAST_SHARE * way)
    return Reference(rows=trainings[0], results=exact, bounds=bounds)


def as_results(rows: list[dict[str, float]], final: dict[str, Tensor]) -> Results:
    """The results of a training by the names of `Reference`.

    Batch norm's running statistics are left out: they are each rank's own, and used by none.
    """
    found = {
        f"step {step} {name}": torch.tensor(value, dtype=torch.float64)
        for step, row in enumerate(rows)
        for name, value in row.items()
    }
    unused = ("running_mean", "running_var", "num_batches_tracked")
    return found | {
        f"final {name}": value.detach().clone() for name, value in final.items() if not name.endswith(unused)
    }

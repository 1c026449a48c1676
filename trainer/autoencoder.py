"""VidTwin's training step: two networks, two DeepSpeed engines, one pass through each loss network.

The loss networks never see the generator engine's graph: they differentiate with respect to a leaf copy of the
reconstruction, and the sum of these gradients goes back through the engine in one backward (docs/training.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from data_pipeline.read.loader import Batch
from model.discriminator import build_discriminator
from model.lpips import LPIPS
from model.precision import at_least_fp32
from model.vidtwin import VidTwin
from model.weights import save_tensors
from trainer import gan
from trainer.checkpoint import reshard
from trainer.checkpoint.zero_files import FROZEN_FILE, average_file
from trainer.config.learning import Freeze, Precision
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.ema import Ema
from trainer.engine.engine import Engine
from trainer.engine.gradient_watch import Gradients
from trainer.engine.networks import Critic, Generator, evaluation_copy, load_initial_weights, load_lpips, write_model
from trainer.evaluation.metrics import reconstruct
from trainer.objective import ReconstructionObjective, nll, values_per_frame
from trainer.randomness import clip_generators, seed_everything

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


class Autoencoder:
    """The training method of VidTwin (see `loop.Method`).

    Args:
        config: the run.
        ranks: of the run.
        fresh: the run begins here, with the weights of `init_from` where there is one; otherwise `load` follows.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, fresh: bool = True) -> None:
        self.config, self.ranks = config, ranks
        self.micro_batch, self.accumulation = config.split_batch(ranks.world_size)
        seed_everything(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        vidtwin = VidTwin(config.model)
        if config.freeze is Freeze.encoder:
            vidtwin.freeze_encoder()
        recompute = config.activation_checkpointing
        vidtwin.set_activation_checkpointing(recompute.mode.value, recompute.every)
        self.patchify = vidtwin.patchify
        self.facts = {
            "tokens_per_clip": float(config.model.frames * config.model.grid**2),
            "flops_per_clip": vidtwin.flops_per_clip(),
        }
        perceived = ("lpips",) if config.loss.lpips_weight > 0 else ()
        self.terms = ("total_loss", "nll_loss", "kl_loss", "l1", "mse", *perceived, "logvar", "grad_norm_generator")
        generator = Generator(vidtwin, config.loss.logvar)
        # fp16 would need the adversarial gradient scaled past the generator's own loss scale, so it stays fp32 there.
        dtype = torch.bfloat16 if config.precision is Precision.bf16 else torch.float32
        critic = Critic(build_discriminator(config.discriminator), dtype) if config.gan.weight > 0 else None
        if config.init_from and fresh:
            load_initial_weights(Path(config.init_from), generator, critic)
        self.generator = self._engine("generator", generator, config.zero.stage, config.precision)
        self.critic = (
            self._engine("discriminator", critic, config.zero.discriminator_stage, Precision.fp32) if critic else None
        )
        perceptual = None
        if config.loss.lpips_weight > 0:
            perceptual = self._lpips()
        self.reconstruction = ReconstructionObjective(config.loss.lpips_weight, perceptual, DTYPES[config.precision])
        self.ema = Ema(self.generator.masters(), config.ema.decay) if config.ema.decay > 0 else None
        self.logit_means = torch.zeros(2, device=ranks.device)  # LeCam's running means: real, fake
        seed_everything(config.seed + 1 + ranks.rank)  # from here on ranks draw apart (dropout)

    def _lpips(self) -> LPIPS:
        return load_lpips(self.config.loss.lpips_weights).to(self.ranks.device)

    def _engine(self, name: str, module: nn.Module, stage: int, precision: Precision) -> Engine:
        zero = self.config.zero
        if name == "discriminator":  # too small to be worth the way to the host and back
            zero = replace(zero, offload_optimizer=False, offload_parameters=False)
        return Engine(
            name,
            module,
            stage=stage,
            precision=precision,
            optimizer=getattr(self.config.optim, name),
            optim=self.config.optim,
            zero=zero,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation,
            ranks=self.ranks.world_size,
        )

    # ---- one step -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Train on this rank's share of one global batch.

        Args:
            batch: micro_batch x accumulation clips.
            step: generator steps done so far.
        Returns:
            The step's terms, 0-dim tensors on the device: means over this rank's clips. `skipped` is 1 where a
            network's update was skipped for a non-finite gradient.
        """
        config = self.config
        learns = config.gan.learns(step)
        schedules = self.schedules(step)
        means = _Means()
        for index, video in enumerate(self._micro_batches(batch)):
            fake, heard = self._generator_micro_batch(video, step, index, means)
            self.generator.step(schedules["lr_generator"])
            if self.critic is not None and (learns or config.gan.idle_steps):
                self._critic_micro_batch(self.critic, video, fake, heard, 1.0 if learns else 0.0, means)
                self.critic.step(schedules["lr_discriminator"])
        if self.ema is not None:
            self.ema.update()
        terms = means.result()
        terms["grad_norm_generator"], terms["skipped"] = self.generator.outcome(self.ranks.device)
        if "disc_loss" in terms and self.critic is not None:
            terms["grad_norm_discriminator"], skipped = self.critic.outcome(self.ranks.device)
            terms["skipped"] = torch.maximum(terms["skipped"], skipped)
            self._follow_logits(terms)
        return terms

    def gradients(self) -> dict[str, Gradients]:
        """By network, which gradients of the last step were finite, where that was looked at."""
        found = {engine.name: engine.gradients() for engine in self._engines()}
        return {name: gradients for name, gradients in found.items() if gradients is not None}

    def schedules(self, step: int) -> dict[str, float]:
        """Learning rates, adversarial weight, and whether the discriminator learns, at generator step `step`.

        And, in fp16, the loss scale of the next step, whatever its number.
        """
        config = self.config
        scale = {} if self.generator.loss_scale is None else {"loss_scale": self.generator.loss_scale}
        return scale | {
            "lr_generator": config.optim.generator.lr_at(step, config.steps),
            "lr_discriminator": config.optim.discriminator.lr_at(step, config.steps),
            "gan_weight": config.gan.adversarial_weight(step),
            "gan_learns": float(config.gan.learns(step)),
        }

    def _micro_batches(self, batch: Batch) -> Iterator[Tensor]:
        for frames in batch.video.split(self.micro_batch):
            yield to_unit_range(frames.to(self.ranks.device, non_blocking=True))

    def _generator_micro_batch(
        self, video: Tensor, step: int, index: int, means: _Means
    ) -> tuple[Tensor, Tensor | None]:
        """Forward and backward of the generator.

        Returns:
            The reconstruction, fp32, without the generator's graph, and the discriminator's logits of it with their
            graph, or None where the generator did not hear the discriminator.
        """
        config = self.config
        noise = self._noise(step, index) if config.loss.sample_posterior else None
        recon, hidden, kl, logvar = self.generator(video, config.loss.sample_posterior, noise)
        leaf = at_least_fp32(recon.detach()).requires_grad_()
        rebuilt = self.reconstruction(video, leaf)
        scale = at_least_fp32(logvar).reshape(())
        (grad,) = torch.autograd.grad(rebuilt.error * torch.exp(-scale.detach()), leaf)
        nll_loss = nll(rebuilt.error.detach(), scale, values_per_frame(video))
        total = nll_loss.detach() + config.loss.kl_weight * kl.detach()
        weight = config.gan.adversarial_weight(step)
        heard = None
        if weight > 0 and self.critic is not None:
            heard = self.critic.module.judge(leaf)  # type: ignore[operator]
            adversarial, grad_adv = _adversarial(heard, leaf)
            factor = torch.full_like(total, weight)
            if config.gan.adaptive:
                adaptive = self._adaptive_weight(grad, grad_adv, hidden)
                factor = factor * adaptive
                means.add(adaptive_weight=adaptive)
            grad = grad + factor * grad_adv
            total = total + factor * adversarial
            means.add(adversarial_loss=adversarial, adversarial_weight=factor)
        # (recon * grad).sum() has the gradient `grad` at recon; its value means nothing.
        objective = (at_least_fp32(recon) * grad).sum() + config.loss.kl_weight * kl + nll_loss
        self.generator.backward(objective * _one_if_finite(total))
        means.add(total_loss=total, nll_loss=nll_loss.detach(), kl_loss=kl.detach(), logvar=scale.detach())
        means.add(l1=rebuilt.l1, mse=rebuilt.mse)
        if self.reconstruction.perceptual is not None:
            means.add(lpips=rebuilt.lpips)
        return leaf.detach(), heard

    def _adaptive_weight(self, grad_nll: Tensor, grad_adv: Tensor, hidden: Tensor) -> Tensor:
        nll_gradient, adv_gradient = (
            gan.last_layer_gradient(grad, hidden, self.patchify) for grad in (grad_nll, grad_adv)
        )
        return gan.adaptive_weight(nll_gradient, adv_gradient, self.config.gan.local_weight)

    def _critic_micro_batch(
        self, critic: Engine, video: Tensor, fake: Tensor, heard: Tensor | None, factor: float, means: _Means
    ) -> None:
        """One backward of the discriminator over real and fake.

        Its weights have not moved since the generator heard it, so `heard` and its graph serve again. Both calls go to
        the module: logits from outside the engine's own forward are refused by the engine at ZeRO 0.
        """
        judge = critic.module.judge
        logits_real = judge(video)  # type: ignore[operator]
        logits_fake = judge(fake) if heard is None else heard  # type: ignore[operator]
        loss = gan.hinge_loss(logits_real, logits_fake)
        means.add(disc_loss=loss.detach())
        if self.config.gan.lecam_weight > 0:
            lecam = gan.lecam_loss(logits_real, logits_fake, self.logit_means)
            loss = loss + self.config.gan.lecam_weight * lecam
            means.add(lecam_loss=lecam.detach())
        critic.backward(factor * loss * _one_if_finite(loss))
        means.add(logits_real=logits_real.detach().mean(), logits_fake=logits_fake.detach().mean())

    def _follow_logits(self, terms: dict[str, Tensor]) -> None:
        """Move LeCam's means towards this step's logits, over all ranks; a non-finite step leaves them alone."""
        if self.config.gan.lecam_weight == 0:
            return
        logits = torch.stack([terms["logits_real"], terms["logits_fake"]])
        if self.ranks.world_size > 1:
            dist.all_reduce(logits)
            logits /= self.ranks.world_size
        moved = torch.lerp(logits, self.logit_means.to(logits.dtype), self.config.gan.lecam_decay)
        self.logit_means = torch.where(torch.isfinite(logits), moved, self.logit_means)
        terms["lecam_real"], terms["lecam_fake"] = self.logit_means.clone()

    def _noise(self, step: int, index: int) -> list[torch.Generator]:
        """Sources of the posterior noise of the clips of micro-batch `index`, by their places in the global batch."""
        first = (self.ranks.rank * self.accumulation + index) * self.micro_batch
        return clip_generators(self.config.seed, step, range(first, first + self.micro_batch), self.ranks.device)

    # ---- state ----------------------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write both engines, the moving average and LeCam's means into `directory`; every rank calls it."""
        for engine in self._engines():
            engine.save(directory)
        if self.ema is not None and (self.ranks.is_main or self.config.zero.stage > 0):  # at stage 0 all hold the same
            self.ema.save(average_file(directory, self.ranks.rank))
        if self.ranks.is_main:
            torch.save({"logit_means": self.logit_means.cpu()}, directory / "method.pt")
            if self.generator.frozen:
                save_tensors(self.generator.frozen, directory / FROZEN_FILE)

    def load(self, directory: Path) -> None:
        """Undo `save`, of whatever ranks, ZeRO stage and precision; every rank calls it."""
        saved = reshard.load(self._engines(), self.ema, directory)
        if self.ranks.is_main:
            for remark in reshard.remarks(self.config, saved, self.generator):
                print(remark, flush=True)
        if self.generator.frozen:
            self.generator.restore_frozen(load_file(directory / FROZEN_FILE))
        state: dict[str, Any] = torch.load(directory / "method.pt", weights_only=True)
        self.logit_means = state["logit_means"].to(self.ranks.device)

    def export(self, directory: Path) -> None:
        """Write a `VidTwin.from_pretrained` directory, with discriminator and logvar beside it for `init_from`.

        The moving average, if there is one, goes to a directory named like the first with `_ema` behind. Every rank
        calls it, the main one writes.
        """
        self._export(directory)
        if self.ema is not None:
            with self.ema.applied():
                self._export(directory.with_name(f"{directory.name}_ema"))

    def _export(self, directory: Path) -> None:
        generator = self.generator.full_state()
        critic = self.critic.full_state() if self.critic is not None else None
        if self.ranks.is_main:
            write_model(directory, self.config.model, generator, critic)

    @contextlib.contextmanager
    def evaluating(self, ema: bool) -> Iterator[Callable[[Tensor], Tensor]]:
        """A copy of VidTwin from the fp32 masters, or from their moving average, that rebuilds clips in [0, 1].

        The same weights as `export` writes, at every ZeRO stage and precision; every rank enters. Training's modules
        and random generators are not touched.
        """
        assert self.ema is not None or not ema
        with self.ema.applied() if ema and self.ema is not None else contextlib.nullcontext():
            state = self.generator.full_state()
        vidtwin = evaluation_copy(self.config.model, state).to(self.ranks.device)
        yield partial(reconstruct, vidtwin)

    @torch.no_grad()
    def pictures(self, batch: Batch, count: int) -> Tensor:
        """Rows of source, reconstruction, structure only, dynamics only; every rank calls it.

        Returns:
            uint8 [count, 4, T, H, W, 3] on the host.
        """
        video = to_unit_range(batch.video[: min(count, self.micro_batch)].to(self.ranks.device))
        with self.generator.whole() as module:
            vidtwin = module.eval().vidtwin
            latents = vidtwin.encode(video)  # type: ignore[operator, union-attr]
            columns = [video] + [
                vidtwin.decode(latents, structure=structure, dynamics=dynamics)  # type: ignore[operator, union-attr]
                for structure, dynamics in ((True, True), (True, False), (False, True))
            ]
            module.train()
        rows = torch.stack([column.float() for column in columns], dim=1)
        return rows.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 1, 3, 4, 5, 2).cpu()

    def _engines(self) -> list[Engine]:
        return [self.generator] + ([self.critic] if self.critic is not None else [])


def _one_if_finite(loss: Tensor) -> Tensor:
    """1, or NaN where the loss is not finite: a factor that makes the gradients say so too, and the step is skipped."""
    return torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


def _adversarial(logits_fake: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
    """Adversarial loss and its gradient at the reconstruction; the logits' graph is kept for the discriminator."""
    loss = gan.generator_loss(logits_fake)
    (grad,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    return loss.detach(), grad


class _Means:
    """Terms of the micro-batches of one step, averaged."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, **terms: Tensor) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else at_least_fp32(value.detach())
            self.counts[name] = self.counts.get(name, 0) + 1

    def result(self) -> dict[str, Tensor]:
        return {name: value / self.counts[name] for name, value in self.sums.items()}


def to_unit_range(frames: Tensor) -> Tensor:
    """uint8 frames as fp32 in [-1, 1]; floating-point frames are there already."""
    return frames if frames.is_floating_point() else frames.float().div_(127.5).sub_(1.0)

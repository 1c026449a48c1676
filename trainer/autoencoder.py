"""VidTwin's training step: two networks, two DeepSpeed engines, one pass through each loss network.

The loss networks never see the generator engine's graph: they differentiate with respect to a leaf copy of the
reconstruction, and the sum of these gradients goes back through the engine in one backward (docs/training_losses.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.read.loader import Batch
from model.lpips import LPIPS
from model.network import Posteriors
from model.noise import Noise, draw_noise
from model.precision import at_least_fp32
from trainer import gan
from trainer.autoencoder_networks import AutoencoderNetworks
from trainer.config.learning import Compile, Precision
from trainer.config.objective import LossConfig, Perceptual
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.compiled import compile_forward
from trainer.engine.engine import Engine, MakeEngine
from trainer.engine.gradient_watch import Gradients
from trainer.engine.observed import Moved, gradient_norms
from trainer.evaluation.metrics import reconstruct, taken_apart, to_unit
from trainer.evaluation.validation import Validation
from trainer.latent_terms import latent_terms
from trainer.objective import (
    ReconstructionObjective,
    likelihood,
    to_unit_range,
    values_per_frame,
)
from trainer.perceptual import load_perceptual
from trainer.randomness import clip_generators, drawn_frames, seed_everything
from trainer.step_terms import TermMeans, one_if_finite

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


class Autoencoder(AutoencoderNetworks):
    """The training method of VidTwin (see `method.Method`).

    Args:
        config: the run.
        ranks: of the run.
        fresh: the run begins here, with the weights of `init_from` where there is one; otherwise `load` follows.
        validation: what `validate` measures; None where it is never called.
        make_engine: puts a network into its engine; an estimate has engines without DeepSpeed.
        make_perceptual: the perceptual network of `loss.perceptual` on a device; an estimate needs no true weights.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        fresh: bool = True,
        *,
        validation: Validation | None = None,
        make_engine: MakeEngine = Engine,
        make_perceptual: Callable[[LossConfig, torch.device], LPIPS | None] = load_perceptual,
    ) -> None:
        super().__init__(config, ranks, fresh, make_engine)
        self.validation = validation
        perceived = (config.loss.perceptual.value,) if config.loss.perceptual is not Perceptual.none else ()
        self.terms = ("total_loss", "nll_loss", "kl_loss", "l1", "mse", *perceived, "logvar", "grad_norm_generator")
        perceptual = make_perceptual(config.loss, ranks.device)
        if perceptual is not None:
            perceptual.work_in(DTYPES[config.precision])
            if config.compile is Compile.all:
                compile_forward(perceptual)
        self.fixed_logvar: Tensor | None = None
        if not config.loss.learn_logvar:
            self.fixed_logvar = torch.full((1,), config.loss.logvar, device=ranks.device)
        self.reconstruction = ReconstructionObjective(config.loss.perceptual_weight, perceptual)
        seed_everything(config.seed + 1 + ranks.rank)  # from here on ranks draw apart (dropout)

    # ---- one step -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch, step: int, observed: bool = False) -> dict[str, Tensor]:
        """Train on this rank's share of one global batch.

        Args:
            batch: micro_batch x accumulation clips.
            step: generator steps done so far.
            observed: measure the latents, the gradient and the update as well (see `latent_terms.py`, `observed.py`).
        Returns:
            The step's terms, 0-dim tensors on the device: means over this rank's clips. `skipped` is 1 where a
            network's update was skipped for a non-finite gradient; `frames` is there where clips differ in length.
        """
        config = self.config
        learns = config.gan.learns(step)
        schedules = self.schedules(step)
        means = TermMeans()
        # In bf16 the working copy of logvar has steps of 2^-7, and the loss has a step of 2^-7 x values in a frame.
        exact_logvar = self.generator.exact("logvar") if self.fixed_logvar is None else self.fixed_logvar
        seen: dict[str, Tensor] = {}
        for index, video in enumerate(self._micro_batches(batch)):
            fake, logits_fake, posteriors = self._generator_micro_batch(video, step, index, exact_logvar, means)
            if observed and index == self.accumulation - 1:
                seen = latent_terms(posteriors) | self._observed_step(schedules["lr_generator"])
            else:
                self.generator.step(schedules["lr_generator"])
            if self.discriminator is not None and (learns or config.gan.idle_steps):
                factor = 1.0 if learns else 0.0
                self._discriminator_micro_batch(self.discriminator, video, fake, logits_fake, factor, means)
                self.discriminator.step(schedules["lr_discriminator"])
        if self.ema is not None:
            self.ema.update(config.ema.decay)
        terms = means.result()
        terms["grad_norm_generator"], terms["skipped"] = self.generator.outcome(self.ranks.device)
        if "disc_loss" in terms and self.discriminator is not None:
            terms["grad_norm_discriminator"], skipped = self.discriminator.outcome(self.ranks.device)
            terms["skipped"] = torch.maximum(terms["skipped"], skipped)
            self._follow_logits(terms)
        terms |= seen
        if config.data.frame_counts:
            terms["frames"] = torch.full((), float(batch.video.shape[2]), device=self.ranks.device)
        return terms

    def _observed_step(self, lr: float) -> dict[str, Tensor]:
        """The generator's update, with what it does to each part of the network."""
        norms, moved = gradient_norms(self.generator, _part), Moved(self.generator)
        self.generator.step(lr)
        ratios = moved.ratios(_part)
        ratios.pop("logvar", None)  # a number that is 0 at first has no ratio; where it does not learn it has no part
        return {f"grad_norm_{part}": norm for part, norm in norms.items()} | {
            f"update_{part}": ratio.float() for part, ratio in ratios.items()
        }

    def length(self, batch: Batch) -> float:
        """Frames of the batch's clips as a share of data.frames."""
        return batch.video.shape[2] / self.config.data.frames

    def gradients(self) -> dict[str, Gradients]:
        """Network -> which gradients of its last step were finite, for the networks where that was looked at."""
        by_network = {engine.name: engine.gradients() for engine in self.engines()}
        return {name: gradients for name, gradients in by_network.items() if gradients is not None}

    def schedules(self, step: int) -> dict[str, float]:
        """Learning rates, adversarial and KL weight, whether the discriminator learns, at generator step `step`.

        In fp16 also the loss scale of the next step, which does not depend on the step's number.
        """
        config = self.config
        scale = {} if self.generator.loss_scale is None else {"loss_scale": self.generator.loss_scale}
        return scale | {
            "lr_generator": config.optim.generator.lr_at(step, config.steps),
            "lr_discriminator": config.optim.discriminator.lr_at(step, config.steps),
            "gan_weight": config.gan.adversarial_weight(step),
            "gan_learns": float(config.gan.learns(step)),
            **({"kl_weight": config.loss.kl_weight_at(step)} if config.loss.kl_warmup else {}),
        }

    def _micro_batches(self, batch: Batch) -> Iterator[Tensor]:
        for frames in batch.video.split(self.micro_batch):
            yield to_unit_range(frames.to(self.ranks.device, non_blocking=True))

    def _generator_micro_batch(
        self, video: Tensor, step: int, index: int, exact_logvar: Tensor | None, means: TermMeans
    ) -> tuple[Tensor, Tensor | None, Posteriors]:
        """Forward and backward of the generator.

        Args:
            exact_logvar: the value that stands for the engine's logvar, whose gradient stays; None leaves the engine's.
        Returns:
            The reconstruction, fp32, without the generator's graph; the discriminator's logits of it with their graph,
            or None where the generator's loss has no adversarial term yet; and the posteriors, without a graph.
        """
        config = self.config
        noise = self._noise(step, index, video.shape[2]) if config.loss.sample_posterior else None
        recon, hidden, kl, logvar, posteriors = self.generator(video, noise)
        leaf = at_least_fp32(recon.detach()).requires_grad_()
        rebuilt = self.reconstruction(video, leaf, self._perceived_frames(video, step, index))
        scale = (logvar.detach() if exact_logvar is None else exact_logvar).reshape(())
        found = likelihood(rebuilt.error.detach(), at_least_fp32(scale), values_per_frame(video))
        grad = self.reconstruction.gradient(rebuilt, leaf, found.by_error)
        kl_weight = config.loss.kl_weight_at(step)
        total = found.nll + kl_weight * kl.detach()
        weight = config.gan.adversarial_weight(step)
        logits_fake = None
        if weight > 0 and self.discriminator is not None:
            logits_fake = self.discriminator.module.judge(leaf)  # type: ignore[operator]
            adversarial, grad_adv = gan.adversarial_gradient(logits_fake, leaf, config.gan.generator_loss)
            factor = torch.full_like(total, weight)
            if config.gan.adaptive:
                adaptive = self._adaptive_weight(grad, grad_adv, hidden)
                factor = factor * adaptive
                means.add(adaptive_weight=adaptive)
            grad = grad + factor * grad_adv
            total = total + factor * adversarial
            means.add(adversarial_loss=adversarial, adversarial_weight=factor)
        # (recon * grad).sum() has the gradient `grad` at recon; its value means nothing. The same with logvar's slope.
        objective = (at_least_fp32(recon) * grad).sum() + kl_weight * kl
        if config.loss.learn_logvar:
            objective = objective + found.by_logvar * at_least_fp32(logvar).reshape(())
        self.generator.backward(objective * one_if_finite(total))
        means.add(total_loss=total, nll_loss=found.nll, kl_loss=kl.detach(), logvar=at_least_fp32(scale))
        means.add(l1=rebuilt.l1, mse=rebuilt.mse)
        if self.reconstruction.perceptual is not None:
            means.add(**{config.loss.perceptual.value: rebuilt.perceptual})
        return leaf.detach(), logits_fake, posteriors

    def _adaptive_weight(self, grad_nll: Tensor, grad_adv: Tensor, hidden: Tensor) -> Tensor:
        nll_gradient, adv_gradient = (
            gan.last_layer_gradient(grad, hidden, self.patchify) for grad in (grad_nll, grad_adv)
        )
        return gan.adaptive_weight(nll_gradient, adv_gradient, self.config.gan.local_weight)

    def _discriminator_micro_batch(
        self,
        discriminator: Engine,
        video: Tensor,
        fake: Tensor,
        logits_fake: Tensor | None,
        factor: float,
        means: TermMeans,
    ) -> None:
        """One backward of the discriminator over real and fake.

        The discriminator's weights have not changed since it computed `logits_fake` for the generator's loss, so these
        logits and their graph serve again. Both calls go to the module, because at ZeRO 0 the engine refuses logits
        from outside its own forward.
        """
        judge = discriminator.module.judge
        logits_real = judge(video)  # type: ignore[operator]
        if logits_fake is None:
            logits_fake = judge(fake)  # type: ignore[operator]
        assert logits_fake is not None
        loss = gan.hinge_loss(logits_real, logits_fake)
        means.add(disc_loss=loss.detach())
        if self.config.gan.lecam_weight > 0:
            lecam = gan.lecam_loss(logits_real, logits_fake, self.logit_means)
            loss = loss + self.config.gan.lecam_weight * lecam
            means.add(lecam_loss=lecam.detach())
        discriminator.backward(factor * loss * one_if_finite(loss))
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

    def _noise(self, step: int, index: int, frames: int) -> Noise:
        """The posterior noise of the clips of micro-batch `index`, by their places in the global batch."""
        sources = clip_generators(self.config.seed, step, self._places(index), self.ranks.device)
        return draw_noise(self.config.model, self.micro_batch, frames, self.ranks.device, sources)

    def _perceived_frames(self, video: Tensor, step: int, index: int) -> list[list[int]] | None:
        """The frames of the clips of micro-batch `index` that the perceptual network sees; None = all."""
        count, frames = self.config.loss.perceptual_frames, video.shape[2]
        if count in (0, frames):
            return None
        return drawn_frames(self.config.seed, step, self._places(index), frames, count)

    def _places(self, index: int) -> range:
        """Places in the global batch of the clips of micro-batch `index`."""
        first = (self.ranks.rank * self.accumulation + index) * self.micro_batch
        return range(first, first + self.micro_batch)

    # ---- validation and pictures ----------------------------------------------------------------------------------

    def validate(self, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        """Measure the weights, or their moving average where `validation.ema` says so; see `Validation.run`."""
        assert self.validation is not None
        with self.evaluating(self.config.validation.ema) as vidtwin:
            return self.validation.run(partial(reconstruct, vidtwin), stop_requested)

    def pictures(self, batch: Batch, count: int) -> dict[str, Tensor]:
        """Rows of source, reconstruction, structure only, dynamics only; every rank calls it.

        Returns:
            uint8 [at most `count`, 4, T, H, W, 3] on the host: of the training batch, and of held-out clips, which are
            the same ones at every call.
        """
        clips = {"samples_batch": batch.video[: min(count, self.micro_batch)]}
        if self.validation is not None:
            held_out = self.validation.fixed_clips(min(count, self.micro_batch))
            clips |= {f"samples_{self.validation.config.splits[0]}": held_out} if len(held_out) else {}
        with self.evaluating(ema=False) as vidtwin:
            rows = {
                name: taken_apart(vidtwin, to_unit(to_unit_range(video.to(self.ranks.device))))
                for name, video in clips.items()
            }
        return {name: row.mul(255).round().byte().permute(0, 1, 3, 4, 5, 2).cpu() for name, row in rows.items()}


def _part(name: str) -> str:
    """The part of the generator that a weight belongs to: `encoder` of `vidtwin.encoder.blocks.0.norm.weight`."""
    return name.removeprefix("vidtwin.").partition(".")[0]

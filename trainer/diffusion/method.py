"""The training method of a DiT: one network in one engine, and the moving average that samples are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.dit import DiT
from model.dit_config import LatentSpace
from model.dit_parts import Condition, DiTBlock
from model.latent_statistics import Statistics
from model.network import Latents
from model.provenance import Provenance, Weights
from trainer.checkpoint import reshard
from trainer.checkpoint.average import Averaged
from trainer.config.diffusion import DiffusionConfig
from trainer.config.learning import Compile
from trainer.diffusion.condition import condition_of, latents_of
from trainer.diffusion.data import LatentBatch
from trainer.diffusion.draws import Drawn, are_dropped, draw_clip, draw_noise
from trainer.diffusion.export import ENGINE, write_dit
from trainer.diffusion.held_out import HeldOutLoss
from trainer.diffusion.initial import load_initial_dit
from trainer.diffusion.loss import Share, clip_losses
from trainer.diffusion.process import process_of
from trainer.distributed import Ranks
from trainer.engine.compiled import compile_blocks
from trainer.engine.engine import Engine, MakeEngine
from trainer.engine.engine_settings import EngineSettings
from trainer.engine.gradient_watch import Gradients
from trainer.engine.saved_bytes import saved_bytes
from trainer.method import Facts
from trainer.randomness import seed_everything
from trainer.step_terms import TermMeans, one_if_finite

CONSOLE = (("total_loss", "loss {:.4g}"), ("loss_structure", "structure {:.4g}"), ("loss_dynamics", "dynamics {:.4g}"))


class LatentDiffusion:
    """Learns to take noise from latents (see `method.Method`).

    Args:
        config: the run.
        ranks: of the run.
        space: of the latents.
        statistics: what they are normalised by.
        fresh: the run begins here, with the weights of `init_from` where there is one; otherwise `load` follows.
        empty_caption: embeddings of the empty caption, with text.
        held_out: this rank's share of the clips that `validate` measures.
        make_engine: puts the network into its engine.
    """

    terms = ("total_loss", "loss_structure", "loss_dynamics", "grad_norm_dit")

    def __init__(
        self,
        config: DiffusionConfig,
        ranks: Ranks,
        space: LatentSpace,
        statistics: Statistics,
        fresh: bool = True,
        *,
        empty_caption: Tensor | None = None,
        held_out: Iterable[LatentBatch] = (),
        make_engine: MakeEngine = Engine,
    ) -> None:
        self.config, self.ranks, self.space = config, ranks, space
        self.micro_batch, self.accumulation = config.split_batch(ranks.world_size)
        seed_everything(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        dit = DiT(config.dit, space, config.process, statistics, empty_caption)
        if config.init_from and fresh:
            load_initial_dit(Path(config.init_from), dit)
        dit.set_activation_checkpointing(
            config.activation_checkpointing.mode.value, config.activation_checkpointing.every
        )
        if config.compile is not Compile.none:
            compile_blocks(dit)
        self.facts = Facts(
            samples_per_step=config.global_batch,
            tokens_per_sample=float(dit.tokens),
            flops_per_sample=dit.flops_per_sample(),
            console=CONSOLE,
            smaller_steps=config.optim.smaller_steps("dit"),
        )
        self.layout = {"zero_stage": config.zero.stage, "precision": config.precision.value}
        self.process = process_of(config.process, config.loss, space.values)
        self.share = Share.of(config.loss.structure_share, space)
        self.engine = make_engine(ENGINE, dit, self._settings())
        self.averaged = Averaged(self.engine, ranks, config.zero.stage, config.ema.decay)
        self.ema = self.averaged.ema
        self.held_out = HeldOutLoss(held_out, self.process, self.share, config.validation.times, config.seed, ranks)

    def _settings(self) -> EngineSettings:
        config = self.config
        return EngineSettings(
            stage=config.zero.stage,
            precision=config.precision,
            optimizer=config.optim.dit,
            optim=config.optim,
            zero=config.zero,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation,
            ranks=self.ranks.world_size,
            gathered_whole=(DiTBlock,),
        )

    @property
    def dit(self) -> DiT:
        """The network as it trains: at ZeRO 3 without its weights, in 16 bits with rounded ones."""
        module = self.engine.module
        assert isinstance(module, DiT)
        return module

    # ---- one step -------------------------------------------------------------------------------------------------

    def step(self, batch: LatentBatch, step: int, observed: bool = False) -> dict[str, Tensor]:
        """Train on this rank's share of one global batch.

        Args:
            batch: micro_batch x accumulation clips.
            step: steps done so far.
            observed: nothing more is measured.
        Returns:
            The step's terms, 0-dim tensors on the device: means over this rank's clips. `skipped` is 1 where the
            update was skipped for a non-finite gradient.
        """
        learning_rate = self.config.optim.dit.lr_at(step, self.config.steps)
        means = TermMeans()
        for clean, condition, drawn in self._micro_batches(batch, step):
            losses = self._losses(clean, condition, drawn)
            structure, dynamics = (loss.mean() for loss in losses)
            total = self.share.together(structure, dynamics)
            self.engine.backward(total * one_if_finite(total))
            means.add(total_loss=total, loss_structure=structure, loss_dynamics=dynamics)
            self.engine.step(learning_rate)
        if self.ema is not None:
            self.ema.update(self.config.ema.decay_at(step))
        terms = means.result()
        terms["grad_norm_dit"], terms["skipped"] = self.engine.outcome(self.ranks.device)
        return terms

    def _micro_batches(self, batch: LatentBatch, step: int) -> Iterator[tuple[Latents, Condition, list[Drawn]]]:
        """Normalised latents, their condition with what is dropped of it, and the draws of each clip."""
        device, dit = self.ranks.device, self.dit
        drawn = [draw_clip(self.config.seed, step, key) for key in batch.keys]
        latents = dit.normaliser.normalise(latents_of(batch, device))
        condition = condition_of(batch, dit, device)
        if condition is not None:
            condition = condition.dropped(are_dropped(drawn, self.config.loss.condition_drop).to(device))
        for first in range(0, len(drawn), self.micro_batch):
            part = slice(first, first + self.micro_batch)
            some = None if condition is None else type(condition)(*(values[part] for values in condition))
            yield Latents(*(values[part] for values in latents)), some, drawn[part]

    def _losses(self, clean: Latents, condition: Condition, drawn: list[Drawn]) -> Latents:
        noise = draw_noise([clip.seed for clip in drawn], self.space, self.ranks.device)
        times = self.process.times([clip.quantile for clip in drawn])
        return clip_losses(self.engine, self.process, clean, noise, times, condition)

    def length(self, batch: LatentBatch) -> float:
        """1, because latents are all as long."""
        return 1.0

    def schedules(self, step: int) -> dict[str, float]:
        """The learning rate of step `step`, what the average keeps, and in fp16 the loss scale."""
        config = self.config
        found = {"lr_dit": config.optim.dit.lr_at(step, config.steps)}
        if self.ema is not None:
            found["ema_decay"] = config.ema.decay_at(step)
        return found if self.engine.loss_scale is None else found | {"loss_scale": self.engine.loss_scale}

    def gradients(self) -> dict[str, Gradients]:
        """Which gradients of the last step were finite, where that was looked at."""
        gradients = self.engine.gradients()
        return {} if gradients is None else {ENGINE: gradients}

    def forward_seconds(self) -> float:
        """Seconds of the forward passes on this rank's device since the last call."""
        return self.engine.forward_clock.take()

    # ---- validation -----------------------------------------------------------------------------------------------

    def validate(self, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        """The loss on held-out clips, of the weights or of their moving average; see `HeldOutLoss`."""
        return self.held_out(self._copy(self.averaged.state(self.config.validation.ema)), stop_requested)

    def pictures(self, batch: LatentBatch, count: int) -> dict[str, Tensor]:
        """None: latents are no pictures, and a training knows no autoencoder that could decode them."""
        return {}

    def _copy(self, state: dict[str, Tensor]) -> DiT:
        """The network with full weights and statistics by name, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            copy = DiT(self.config.dit, self.space, self.config.process)
        copy.load_state_dict(state)
        return copy.eval().requires_grad_(False).to(self.ranks.device)

    # ---- on disk --------------------------------------------------------------------------------------------------

    @property
    def saved_bytes(self) -> int:
        """Bytes of the tensors that `save` writes on this rank, estimated from shapes."""
        return saved_bytes(self.engine, self.ranks.rank, self.ranks.world_size) + self.averaged.saved_bytes

    def save(self, directory: Path) -> None:
        """Write the engine and the moving average into `directory`; every rank calls it."""
        self.engine.save(directory)
        self.averaged.save(directory)

    def load(self, directory: Path) -> None:
        """Undo `save`, of whatever ranks, ZeRO stage and precision; every rank calls it."""
        saved = reshard.load([self.engine], self.ema, directory)
        if self.ranks.is_main:
            for remark in reshard.remarks(saved, self.engine, lambda before, now: []):
                print(remark, flush=True)

    def export(self, directory: Path, provenance: Provenance) -> None:
        """Write a `DiT.from_pretrained` directory, and one of the moving average; see `Averaged.export`."""

        def write(folder: Path, state: dict[str, Tensor], kind: Weights) -> None:
            copy = self._copy(state)
            copy.provenance = replace(provenance, weights=kind)
            write_dit(copy, folder)

        self.averaged.export(directory, write)

"""VidTwin's two networks in their engines: built, saved, loaded, exported, and copied for evaluation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.discriminator import build_discriminator
from model.provenance import Provenance, Weights
from model.transformer import SpaceTimeBlock
from model.vidtwin import VidTwin
from model.weights import load_tensors, save_tensors
from trainer.checkpoint import reshard
from trainer.checkpoint.average import Averaged
from trainer.checkpoint.zero_files import FROZEN_FILE
from trainer.config.learning import Compile, Freeze, Precision
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.compiled import compile_blocks
from trainer.engine.engine import Engine, MakeEngine
from trainer.engine.engine_settings import EngineSettings
from trainer.engine.networks import (
    DiscriminatorModule,
    Generator,
    evaluation_copy,
    load_initial_weights,
    write_model,
)
from trainer.engine.saved_bytes import saved_bytes
from trainer.engine.saved_files import load_saved
from trainer.method import Facts
from trainer.randomness import seed_everything

CONSOLE = (
    ("total_loss", "loss {:.4g}"),
    ("l1", "l1 {:.4f}"),
    ("batch_psnr", "batch psnr {:.2f} dB"),
    ("disc_loss", "disc {:.3f}"),
    ("adversarial_weight", "gan {:.3g}"),
)


class AutoencoderNetworks:
    """Generator and discriminator, the moving average, and LeCam's means: all that a checkpoint of a training holds.

    Args:
        config: the run.
        ranks: of the run.
        fresh: the run begins here, with the weights of `init_from` where there is one; otherwise `load` follows.
        make_engine: puts a network into its engine.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, fresh: bool, make_engine: MakeEngine) -> None:
        self.config, self.ranks = config, ranks
        self.micro_batch, self.accumulation = config.split_batch(ranks.world_size)
        seed_everything(config.seed)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
        vidtwin = VidTwin(config.model)
        if config.freeze is Freeze.encoder:
            vidtwin.freeze_encoder()
        recompute = config.activation_checkpointing
        vidtwin.set_activation_checkpointing(recompute.mode.value, recompute.every)
        if config.compile is not Compile.none:
            compile_blocks(vidtwin)
        self.patchify = vidtwin.patchify
        self.facts = _facts(config, vidtwin)
        self.layout = {
            "zero_stage": config.zero.stage,
            "zero_discriminator_stage": config.zero.discriminator_stage,
            "precision": config.precision.value,
        }
        generator = Generator(vidtwin, config.loss.logvar, config.loss.learn_logvar)
        discriminator = _discriminator(config)
        if config.init_from and fresh:
            load_initial_weights(Path(config.init_from), generator, discriminator)
        self.generator = make_engine("generator", generator, self._generator_settings())
        self.discriminator: Engine | None = None
        if discriminator is not None:
            self.discriminator = make_engine("discriminator", discriminator, self._discriminator_settings())
        self.averaged = Averaged(self.generator, ranks, config.zero.stage, config.ema.decay)
        self.ema = self.averaged.ema
        self.logit_means = torch.zeros(2, device=ranks.device)  # LeCam's running means: real, fake

    def _generator_settings(self) -> EngineSettings:
        config = self.config
        return EngineSettings(
            stage=config.zero.stage,
            precision=config.precision,
            optimizer=config.optim.generator,
            optim=config.optim,
            zero=config.zero,
            micro_batch=self.micro_batch,
            accumulation=self.accumulation,
            ranks=self.ranks.world_size,
            gathered_whole=(SpaceTimeBlock,),
        )

    def _discriminator_settings(self) -> EngineSettings:
        """The generator's settings, but in fp32, and on the device, because the discriminator is too small for offload.

        Its gradients are not averaged beside its backward pass either: at stage 1 with accumulation and several buckets
        DeepSpeed 0.19.8 then takes wrong ones for this network, though not for the generator (seen on two CPU ranks).
        """
        config = self.config
        return replace(
            self._generator_settings(),
            stage=config.zero.discriminator_stage,
            precision=Precision.fp32,
            optimizer=config.optim.discriminator,
            gathered_whole=(),
            zero=replace(config.zero, offload_optimizer=False, offload_parameters=False, overlap_comm=False),
        )

    def engines(self) -> list[Engine]:
        """The generator's, and the discriminator's where there is one."""
        return [self.generator] + ([self.discriminator] if self.discriminator is not None else [])

    def forward_seconds(self) -> float:
        """Seconds of the generator's forward passes on this rank's device since the last call."""
        return self.generator.forward_clock.take()

    @property
    def saved_bytes(self) -> int:
        """Bytes of the tensors that `save` writes on this rank, estimated from shapes."""
        rank, ranks = self.ranks.rank, self.ranks.world_size
        total = sum(saved_bytes(engine, rank, ranks) for engine in self.engines()) + self.averaged.saved_bytes
        if self.ranks.is_main:
            total += sum(weight.numel() * weight.element_size() for weight in self.generator.frozen.values())
        return total

    def save(self, directory: Path) -> None:
        """Write both engines, the moving average and LeCam's means into `directory`; every rank calls it."""
        for engine in self.engines():
            engine.save(directory)
        self.averaged.save(directory)
        if self.ranks.is_main:
            torch.save({"logit_means": self.logit_means.cpu()}, directory / "method.pt")
            if self.generator.frozen:
                save_tensors(self.generator.frozen, directory / FROZEN_FILE)

    def load(self, directory: Path) -> None:
        """Undo `save`, of whatever ranks, ZeRO stage and precision; every rank calls it.

        A fork may come from a run without a discriminator; its own one begins anew then.
        """
        engines = [engine for engine in self.engines() if (directory / engine.name).is_dir()]
        saved = reshard.load(engines, self.ema, directory)
        if self.ranks.is_main:
            for remark in reshard.remarks(saved, self.generator, partial(micro_batch_dependent_settings, self.config)):
                print(remark, flush=True)
        if self.generator.frozen:
            self.generator.restore_frozen(load_tensors(directory / FROZEN_FILE))
        state: dict[str, Any] = load_saved(directory / "method.pt", mapped=False)
        if self.discriminator in engines:  # LeCam's means are of the discriminator's logits
            self.logit_means = state["logit_means"].to(self.ranks.device)

    def export(self, directory: Path, provenance: Provenance | None = None) -> None:
        """Write a `VidTwin.from_pretrained` directory, with discriminator and logvar beside it for `init_from`.

        The moving average has a directory of its own, see `Averaged.export`.

        Args:
            directory: it does not exist.
            provenance: of the weights themselves; None where no run made them.
        """
        discriminator = self.discriminator.full_state() if self.discriminator is not None else None

        def write(folder: Path, generator: dict[str, Tensor], kind: Weights) -> None:
            about = provenance and replace(provenance, weights=kind)
            write_model(folder, self.config.model, generator, discriminator, about)

        self.averaged.export(directory, write)

    @contextlib.contextmanager
    def evaluating(self, ema: bool) -> Iterator[VidTwin]:
        """A copy of VidTwin from the fp32 masters, or from their moving average, in evaluation mode on the device.

        The same weights as `export` writes, at every ZeRO stage and precision; every rank enters. Training's modules
        and random generators are not touched, and ranks may use the copy unequally often.
        """
        yield evaluation_copy(self.config.model, self.averaged.state(ema)).to(self.ranks.device)


def _discriminator(config: TrainConfig) -> DiscriminatorModule | None:
    if config.gan.weight == 0:
        return None
    # fp16 would need the adversarial gradient scaled past the generator's own loss scale, so the discriminator stays
    # in fp32 there.
    dtype = torch.bfloat16 if config.precision is Precision.bf16 else torch.float32
    return DiscriminatorModule(build_discriminator(config.discriminator), dtype)


def _facts(config: TrainConfig, vidtwin: VidTwin) -> Facts:
    return Facts(
        samples_per_step=config.data.global_batch,
        tokens_per_sample=float(config.model.frames * config.model.grid**2),
        flops_per_sample=vidtwin.flops_per_clip(),
        console=CONSOLE,
        derived=batch_psnr,
        smaller_steps=config.optim.smaller_steps("generator"),
    )


def micro_batch_dependent_settings(config: TrainConfig, before: reshard.Divided, now: reshard.Divided) -> list[str]:
    """The settings because of which other micro-batches give other losses.

    Args:
        before, now: the number of ranks, and the number of clips in one micro-batch of a rank.
    """
    reasons = []
    adversarial = config.gan.weight > 0
    if adversarial and config.discriminator.norm == "batch" and before[1] != now[1]:
        reasons.append("discriminator.norm=batch")
    measured = [clips if config.gan.local_weight else ranks * clips for ranks, clips in (before, now)]
    if adversarial and config.gan.adaptive and measured[0] != measured[1]:
        reasons.append(f"gan.local_weight={str(config.gan.local_weight).lower()}")
    if config.model.structure.dropout > 0 and before != now:
        reasons.append(f"model.structure.dropout={config.model.structure.dropout:g}")
    return reasons


def batch_psnr(means: Mapping[str, float]) -> dict[str, float]:
    """The peak signal-to-noise ratio, in dB, of the mean squared error `mse` of values in [-1, 1].

    It is of training batches, with drawn latents, and of the error's mean over many clips. So its name is not that of
    what validation measures (`val_psnr`), which is a mean over clips and comes out higher or lower for other reasons.
    """
    mse = means.get("mse", 0.0)
    return {"batch_psnr": 10 * math.log10(4.0 / mse)} if mse else {}

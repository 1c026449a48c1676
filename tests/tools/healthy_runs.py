"""The small runs of docs/healthy.md: a healthy one, and those that go wrong by settings that a user can set.

All of them are configs/train/demo.yaml with `COMMON`, which leaves the perceptual network out, so that a run takes a
minute or two on one core. A run that goes wrong differs from the healthy one by its own `words` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COMMON = (
    "steps=300",
    "loss.perceptual=none",
    "gan.start=150",
    "gan.ramp=30",
    "telemetry.log_every=5",
    "telemetry.samples_every=0",
    "telemetry.tensorboard=false",
    "validation.every=25",
    "validation.splits=[val,train]",
    "checkpoint.every=150",
    "checkpoint.keep=1",
)


@dataclass(frozen=True)
class Panel:
    """One chart of a picture.

    Attributes:
        title: with the unit, where there is one.
        terms: name of a line -> term of metrics.jsonl; one or two.
        log: whether the axis of the values is logarithmic.
    """

    title: str
    terms: Mapping[str, str]
    log: bool = False


@dataclass(frozen=True)
class SmallRun:
    """One training and its picture.

    Attributes:
        name: of the picture's file and of the run's folder.
        title: what the picture shows.
        words: settings behind `COMMON`, as the command line takes them.
        remedy: what to do about it; for the healthy run what to look at.
        panels: the picture's charts, two in a row.
    """

    name: str
    title: str
    words: tuple[str, ...]
    remedy: str
    panels: tuple[Panel, ...]


PSNR = Panel("PSNR (dB)", {"trained on": "train_psnr", "held out": "val_psnr"})
BATCH_PSNR = Panel("PSNR of the batch (dB)", {"this run": "batch_psnr"})
LOSS = Panel("total_loss", {"this run": "total_loss"})
GRADIENT = Panel("grad_norm_generator", {"this run": "grad_norm_generator"}, log=True)
UPDATE = Panel("update_decoder", {"this run": "update_decoder"}, log=True)
LOGVAR = Panel("logvar", {"this run": "logvar"})
KL = Panel(
    "KL of a latent (nats a clip)", {"structure": "latent_kl_structure", "dynamics_w": "latent_kl_dynamics_w"}, log=True
)
OFF = Panel(
    "Share of a latent that is off", {"structure": "latent_off_structure", "dynamics_w": "latent_off_dynamics_w"}
)
LOGITS = Panel("Logits", {"real": "logits_real", "rebuilt": "logits_fake"})
DISC_LOSS = Panel("disc_loss", {"this run": "disc_loss"})
WEIGHT = Panel("adaptive_weight", {"this run": "adaptive_weight"}, log=True)

HEALTHY = SmallRun(
    "healthy",
    "A healthy run",
    (),
    "",
    (PSNR, LOSS, LOGVAR, KL, OFF, UPDATE, LOGITS, WEIGHT),
)
WRONG = (
    SmallRun(
        "learning_rate",
        "The learning rate is too high",
        ("optim.generator.lr=0.1", "optim.generator.warmup=0"),
        "",
        (BATCH_PSNR, LOSS, GRADIENT, UPDATE),
    ),
    SmallRun("collapsed_latent", "The latents collapse", ("loss.kl_weight=10",), "", (PSNR, LOSS, KL, OFF)),
    SmallRun(
        "discriminator_wins",
        "The discriminator wins",
        ("gan.weight=5", "optim.discriminator.lr=3.0e-3"),
        "",
        (PSNR, LOGITS, DISC_LOSS, WEIGHT),
    ),
    SmallRun(
        "discriminator_learns_nothing",
        "The discriminator learns nothing",
        ("optim.discriminator.lr=1.0e-7",),
        "",
        (PSNR, LOGITS, DISC_LOSS, WEIGHT),
    ),
    SmallRun(
        "discriminator_too_early",
        "The discriminator comes too early",
        ("gan.start=0", "gan.warmup=0", "gan.ramp=0"),
        "",
        (PSNR, LOGITS, DISC_LOSS, WEIGHT),
    ),
    SmallRun(
        "learnt_by_heart",
        "Two clips are learnt by heart",
        ("data.frames=17", "model.frames=17", "data.global_batch=4"),
        "",
        (PSNR, BATCH_PSNR, LOSS, LOGVAR),
    ),
)
RUNS = {run.name: run for run in (HEALTHY, *WRONG)}
END_VALUES = (
    "batch_psnr",
    "train_psnr",
    "val_psnr",
    "total_loss",
    "logvar",
    "kl_loss",
    "latent_off_structure",
    "grad_norm_generator",
    "logits_real",
    "logits_fake",
    "disc_loss",
    "adaptive_weight",
)
"""The terms of the table, whose last values it holds."""

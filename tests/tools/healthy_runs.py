"""The small runs of docs/healthy.md: a healthy one, and those that go wrong by settings that a user can set.

All of them are configs/train/demo.yaml with `COMMON`, which leaves the perceptual network out, so that a run takes a
minute or two on one core. A run that goes wrong differs from the healthy one by its own `words` alone. Where these take
effect with the discriminator only, the run is a fork of the healthy one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
    "checkpoint.keep=2",
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
        fork_at: step of the healthy run that the run begins from, because the two are the same up to it; 0 = the run
            begins at the beginning.
        gives_up: whether the training may end by itself with status 2, because it has skipped too many steps.
    """

    name: str
    title: str
    words: tuple[str, ...]
    remedy: str
    panels: tuple[Panel, ...]
    fork_at: int = 0
    gives_up: bool = False


PSNR = Panel("PSNR (dB)", {"train": "train_psnr", "val": "val_psnr"})
BATCH_PSNR = Panel("batch_psnr (dB)", {"this run": "batch_psnr"})
LOSS = Panel("total_loss", {"this run": "total_loss"})
KL_LOSS = Panel("kl_loss (nats a clip)", {"this run": "kl_loss"}, log=True)
GRADIENT = Panel("grad_norm_generator", {"this run": "grad_norm_generator"}, log=True)
SKIPPED = Panel("skipped (steps since the last log step)", {"this run": "skipped"})
LOGVAR = Panel("logvar", {"this run": "logvar"})
UPDATE = Panel("update_decoder (share of its weights)", {"this run": "update_decoder"}, log=True)
LATENTS = ("structure", "dynamics_w", "dynamics_h")
ALL_KL = Panel("latent_kl (nats a clip)", {name: f"latent_kl_{name}" for name in LATENTS}, log=True)
ALL_OFF = Panel("latent_off (share)", {name: f"latent_off_{name}" for name in LATENTS})
STRUCTURE_OFF = Panel("latent_off_structure (share)", {"this run": "latent_off_structure"})
DYNAMICS_OFF = Panel("latent_off_dynamics_w (share)", {"this run": "latent_off_dynamics_w"})
LOGITS = Panel("logits", {"real": "logits_real", "rebuilt": "logits_fake"})
DISC_LOSS = Panel("disc_loss", {"this run": "disc_loss"})
WEIGHT = Panel("adaptive_weight", {"this run": "adaptive_weight"})
WIDE_WEIGHT = replace(WEIGHT, log=True)

HEALTHY = SmallRun(
    "healthy",
    "A healthy run",
    (),
    "What to do: nothing. The discriminator learns from step 150 on, and its gradient reaches the generator from "
    "step 170 on.",
    (PSNR, LOSS, LOGVAR, UPDATE, ALL_KL, ALL_OFF, LOGITS, WEIGHT),
)
WRONG = (
    SmallRun(
        "learning_rate",
        "The learning rate is too high",
        ("optim.generator.lr=0.02",),
        "What to do: lower optim.generator.lr (the healthy run has 0.003) and go back to a checkpoint before the first "
        "spike (checkpoint.resume=STEP). rollback.factor helps against one spike, not against such a rate.",
        (BATCH_PSNR, KL_LOSS, GRADIENT, SKIPPED),
        gives_up=True,
    ),
    SmallRun(
        "collapsed_latent",
        "The latents collapse",
        ("loss.kl_weight=10",),
        "What to do: lower loss.kl_weight (default 0.001), or let it rise slowly (loss.kl_warmup), and start again: a "
        "checkpoint from after the collapse has nothing in its latents to go on with.",
        (PSNR, KL_LOSS, STRUCTURE_OFF, DYNAMICS_OFF),
    ),
    SmallRun(
        "discriminator_takes_over",
        "The discriminator takes over",
        ("gan.weight=5", "optim.discriminator.lr=3.0e-3"),
        "What to do: lower gan.weight (default 0.05) and optim.discriminator.lr (the healthy run has 0.0001), and go "
        "back to a checkpoint from before gan.start (checkpoint.resume=STEP).",
        (PSNR, LOGITS, DISC_LOSS, WIDE_WEIGHT),
        fork_at=150,
    ),
    SmallRun(
        "discriminator_learns_nothing",
        "The discriminator learns nothing",
        ("optim.discriminator.lr=1.0e-7",),
        "What to do: raise optim.discriminator.lr (the healthy run has 0.0001). The schedule of this rate counts the "
        "generator's steps, so after a late gan.start a cosine leaves little of the rate.",
        (PSNR, LOGITS, DISC_LOSS, WEIGHT),
        fork_at=150,
    ),
    SmallRun(
        "learnt_by_heart",
        "The clips are learnt by heart",
        ("data.frames=17", "model.frames=17", "data.global_batch=2"),
        "What to do: more clips. Two of eight are long enough for data.frames=17; the console's line of the data says "
        "how many are left out. checkpoint.best=val_psnr keeps the best step.",
        (PSNR, BATCH_PSNR, LOSS, LOGVAR),
    ),
)
RUNS = {run.name: run for run in (HEALTHY, *WRONG)}
END_VALUES = (
    "batch_psnr",
    "train_psnr",
    "val_psnr",
    "l1",
    "total_loss",
    "logvar",
    "kl_loss",
    "latent_off_structure",
    "latent_off_dynamics_w",
    "grad_norm_generator",
    "update_decoder",
    "logits_real",
    "logits_fake",
    "disc_loss",
    "adaptive_weight",
)
"""The terms of the table, whose last values it holds."""

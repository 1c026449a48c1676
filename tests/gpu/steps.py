"""Some training steps of the tiny model in each precision and at each ZeRO stage, against fp32 on the CPU.

Then what a checkpoint brings back, what an export holds, and the optimizer's state in host memory.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tests.gpu.findings import Context, held, kept, measured, relative
from tests.gpu.small_model import STEPS, TERMS, key, small_config, train
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks

# Largest relative difference of a term, times a factor of its own. In 16 bits a weight has 8 or 11 bits; the weight of
# the adversarial term and the norm come from gradients, which are further off than losses, as are the few logits.
ALLOWED = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
LOOSER = {"adversarial_weight": 5.0, "grad_norm_generator": 5.0, "disc_loss": 2.5}
BETWEEN_STAGES = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}

# ZeRO 3 comes last, because it replaces a function of torch in its process.
CASES = [(precision, stage) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16", "fp16")]
CASES_ON_CPU = [("fp32", 0), ("bf16", 1), ("fp32", 3)]


def run(context: Context) -> None:
    ranks = distributed.start(5)
    try:
        stages: dict[str, list[dict[str, float]]] = {}
        reference = dict(context.reference)
        for precision, stage in CASES if context.on_gpu else CASES_ON_CPU:
            one_case(context, ranks, precision, stage, stages, reference)
        for stage in (1, 3) if context.on_gpu else ():
            offloaded(context, ranks, stage, stages["fp32"])
        if context.on_gpu:
            held("TF32 switched off", float(torch.backends.cuda.matmul.allow_tf32), 0, "tf32=false")
    finally:
        distributed.stop()


def one_case(
    context: Context,
    ranks: Ranks,
    precision: str,
    stage: int,
    stages: dict[str, list[dict[str, float]]],
    reference: dict[str, float],
) -> None:
    """Train, and hold the terms against the CPU's and against those of the first stage in the same precision."""
    name = f"{precision} ZeRO {stage}"
    config = small_config(context.folder, f"precision={precision}", f"zero.stage={stage}")
    method = Autoencoder(config, ranks)
    rows = train(method, ranks, steps=STEPS - 1)
    check_weights(method, name)
    checkpoint = context.folder / f"checkpoint {name}"
    checkpoint.mkdir()
    method.save(checkpoint)
    rows += train(method, ranks, STEPS - 1, 1)
    resumed(config_folder=checkpoint, method=method, ranks=ranks, wanted=rows[-1], name=name)
    if not context.on_gpu and name == "fp32 ZeRO 0":
        for step, row in enumerate(rows):
            for term, value in row.items():
                kept(key(term, step), value)
                reference.setdefault(key(term, step), value)
    if all(key(term, step) in reference for term in TERMS for step in range(STEPS)):
        for term in TERMS:
            differences = [relative(row[term], reference[key(term, step)]) for step, row in enumerate(rows)]
            held(f"{name}: {term}", max(differences), ALLOWED[precision] * LOOSER.get(term, 1.0), "fp32 on CPU")
    else:
        measured(f"{name}: total_loss", ", ".join(f"{row['total_loss']:.6g}" for row in rows))
    if precision in stages:
        apart = max(
            relative(row["total_loss"], first["total_loss"]) for row, first in zip(rows, stages[precision], strict=True)
        )
        held(f"{name}: total_loss", apart, BETWEEN_STAGES[precision], f"the first stage in {precision}")
    stages.setdefault(precision, rows)


def check_weights(method: Autoencoder, name: str) -> None:
    """What is exported is what is validated, and the working weights are the masters, rounded."""
    state = method.generator.full_state()
    with method.evaluating(ema=False) as vidtwin:
        differences = [float((state[f"vidtwin.{n}"] - w.cpu()).abs().max()) for n, w in vidtwin.named_parameters()]
    held(f"{name}: weights that are validated", max(differences), 0.0, "the masters")
    with method.generator.whole() as module:
        off = [
            float(((w.detach().float().cpu() - state[n]).abs() / state[n].abs().clamp(min=1e-3)).max())
            for n, w in module.named_parameters()
        ]
    width = {"fp32": 0.0, "bf16": 2.0**-8, "fp16": 2.0**-11}[method.config.precision.value]
    held(f"{name}: working weights", max(off), width * 1.001, "the masters, rounded to nearest")


def resumed(*, config_folder: Path, method: Autoencoder, ranks: Ranks, wanted: dict[str, float], name: str) -> None:
    """The step after a checkpoint, by another method that has loaded it."""
    again = Autoencoder(method.config, ranks, fresh=False)
    again.load(config_folder)
    (row,) = train(again, ranks, STEPS - 1, 1)
    apart = max(relative(row[term], wanted[term]) for term in TERMS)
    held(f"{name}: the step after loading", apart, 1e-5, "the same step without")


def offloaded(context: Context, ranks: Ranks, stage: int, wanted: list[dict[str, float]]) -> None:
    """The optimizer on the host against the optimizer on the device."""
    words = [f"zero.stage={stage}", "zero.offload_optimizer=true"]
    words += ["zero.offload_parameters=true"] if stage == 3 else []
    method = Autoencoder(small_config(context.folder, *words), ranks)
    rows = train(method, ranks)
    apart = max(relative(row["total_loss"], other["total_loss"]) for row, other in zip(rows, wanted, strict=True))
    held(f"fp32 ZeRO {stage} offloaded: total_loss", apart, 1e-4, "on the device")

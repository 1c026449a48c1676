"""Estimates against what two DeepSpeed ranks allocate, against closed forms, and for every preset."""

import json
import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from launch import estimate as script
from model.discriminator import build_discriminator
from tests.trainer.cases import tiny_config
from tests.trainer.measured_memory import CASES, config_of
from tests.trainer.measured_memory import traced as traced_case
from tests.trainer.pair import run_two_ranks
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.estimate.memory import estimate, memory
from trainer.estimate.speed import traffic
from trainer.estimate.trace import Trace, trace

CONFIGS = Path(__file__).parents[3] / "configs"
PRESETS = [
    *(pytest.param("paper", model, marks=pytest.mark.slow) for model in ("small", "large", "released")),
    *(("paper", "base"), ("released", "released"), ("demo", None)),
]


def measured(directory: Path, *cases: str, ranks: int = 2) -> dict[str, dict[str, int]]:
    # With this threshold a tensor's pages come and go with it, so that the process grows by what a step takes.
    module, settings = "tests.trainer.measured_memory", {"MALLOC_MMAP_THRESHOLD_": "65536"}
    if ranks == 1:
        environment = os.environ | settings | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        subprocess.run([sys.executable, "-m", module, str(directory), *cases], env=environment, check=True, timeout=540)
    else:
        run_two_ranks(module, directory, *cases, **settings)
    found: dict[str, dict[str, int]] = json.loads((directory / "measured.json").read_text())
    return found


def assert_near(found: dict[str, dict[str, int]], directory: Path, ranks: int = 2) -> None:
    for case, sizes in found.items():
        config = config_of(case, directory)
        micro_batch, accumulation = config.split_batch(ranks)
        estimated = memory(config, traced_case(config, micro_batch), ranks, config.zero.stage, accumulation)
        total = estimated.total + estimated.host  # here the device is the host
        assert total == pytest.approx(sizes["peak"], rel=0.15), f"{case}: {estimated}, measured {sizes}"
        sent = traffic(config, traced_case(config, micro_batch), ranks)
        assert ranks == 1 or sent == pytest.approx(sizes["sent"], rel=0.01), (
            f"{case}: {sent} bytes sent, measured {sizes}"
        )


def test_the_networks_of_validation_count_beside_the_losses() -> None:
    """VGG-16's convolutions and the five heads of LPIPS, in 4 bytes each; ST-LPIPS has as many."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    vgg = sum(9 * before * after + after for before, after in pairwise(widths))
    network = 4 * (vgg + 64 + 128 + 256 + 512 + 512 + 2 * 3)  # with the mean and deviation of a picture
    never, both = ["validation.every=0"], ["validation.every=5", "validation.perceptual=st_lpips"]
    for words, networks in ((never, 0), (both, 1), ([*both, "loss.lpips_weights=unused"], 2)):
        config = tiny_config("unused", "loss.perceptual=none", *words)
        assert trace(config, 1).perceptual_bytes == networks * network, words


@pytest.mark.slow
def test_peak_of_a_step_on_two_ranks_at_every_stage(tmp_path: Path) -> None:
    """What the processes of the real engines take, within the 15 % that docs/training_estimate.md promises."""
    assert_near(measured(tmp_path, *(case for case in CASES if case.removeprefix("stage ").isdigit())), tmp_path)


@pytest.mark.slow
def test_peak_of_a_step_in_other_settings(tmp_path: Path) -> None:
    assert_near(measured(tmp_path, *(case for case in CASES if not case.removeprefix("stage ").isdigit())), tmp_path)


@pytest.mark.slow
def test_peak_of_a_step_on_a_single_rank(tmp_path: Path) -> None:
    """DeepSpeed copies the gradients to average them at ZeRO 0 also where there is nobody to average with."""
    assert_near(measured(tmp_path, "stage 0", "stage 1", "stage 0 full", ranks=1), tmp_path, ranks=1)


def test_operations_are_those_of_the_layers() -> None:
    """Recomputing all blocks repeats their products but the last, and their attention; worked out by hand."""
    base = ("gan.weight=0", "model.depth=3")
    none = trace(tiny_config("run", *base), 2)
    full = trace(tiny_config("run", *base, "activation_checkpointing.mode=full"), 2)
    width, frames, patches, clips, blocks = 32, 8, 16, 2, 6
    tokens = clips * frames * patches
    products = 2 * tokens * 12 * width**2
    attention = 4 * clips * width * (frames * patches**2 + patches * frames**2)
    assert full.flops - none.flops == blocks * (products + attention)
    forward = blocks * (2 * tokens * 16 * width**2 + attention)
    assert 3 * forward < none.flops < 4.5 * forward  # the latent networks of a model this small are not small


SMALL = ("model.depth=4", "model.width=64")


@cache
def traced(mode: str) -> Trace:
    """A step of two clips that recomputes so much."""
    return trace(tiny_config("run", *SMALL, f"activation_checkpointing.mode={mode}"), 2)


def test_modes_and_freezing_save_what_they_should() -> None:
    none, selective, full = (traced(mode) for mode in ("none", "selective", "full"))
    assert full.activations < selective.activations < none.activations
    assert selective.flops == none.flops < full.flops
    frozen = trace(tiny_config("run", *SMALL, "freeze=encoder", "init_from=x"), 2)
    assert frozen.activations < 0.8 * none.activations
    assert frozen.network.learning + frozen.network.frozen == none.network.learning


def test_the_discriminators_part() -> None:
    """fp32 weights and gradients on every rank; two moments, at stage 1 masters too, which three ranks divide."""
    config = tiny_config("run", *SMALL)
    discriminator = build_discriminator(config.discriminator)
    count = sum(weight.numel() for weight in discriminator.parameters())
    buffers = sum(buffer.nbytes for buffer in discriminator.buffers())
    assert count % 3
    for stage, state in ((0, 8 * count), (1, 12 * (count // 3 + 1))):
        config.zero.discriminator_stage = stage
        assert memory(config, traced("none"), 3, 1, 1).discriminator == 8 * count + state + buffers


@pytest.mark.parametrize(("name", "model"), PRESETS)
def test_every_preset(name: str, model: str | None) -> None:
    """With fewer blocks, which differ in nothing but their number."""
    files = [CONFIGS / "train" / f"{name}.yaml"] + ([CONFIGS / "model" / f"{model}.yaml"] if model else [])
    config = load_config(TrainConfig, files, ["model.depth=1"], script.UNUSED)
    found = estimate(config, 2, modes=False)
    for stage in (1, 2, 3):
        assert found.stages[stage].optimizer < found.stages[0].optimizer


@pytest.mark.parametrize("allowed", [True, False])
def test_the_tf32_switch_reaches_both_libraries(allowed: bool) -> None:
    """What a GPU would be told; there is nothing for it to change on a CPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        trace(tiny_config("run", f"tf32={allowed}", "gan.weight=0"), 1)  # builds the training method
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

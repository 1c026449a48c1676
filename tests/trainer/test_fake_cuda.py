"""The whole training step on fake tensors on `cuda:0`, forward and backward, on a machine without a GPU.

Torch's own rules for devices are the truth here: an operator that meets tensors of two devices is an error, and a value
that the host reads from the device is seen. No kernel is launched, and nothing is said about numbers or time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent / "fake_cuda"
ROOT = Path(__file__).parents[2]
USUAL_TORCH = torch.__version__.startswith("2.13.")
BF16, LPIPS = "precision=bf16", ("loss.perceptual=lpips", "loss.lpips_weights=unused")
LARGER = ("model.image_size=32", "data.image_size=32")  # pictures that all layers of ST-LPIPS can look at

# Two clips of `tiny_config`, of 1 + 1 blocks. The figure is the number of operators that compute in one step, as torch
# 2.13 counts them. A change of the step may lower it; whoever raises it says why.
STEPS: dict[str, tuple[list[str], int]] = {
    "fp32": ([], 822),
    "bf16": ([BF16], 878),
    "fp16": (["precision=fp16"], 845),
    "bf16 with LPIPS": ([BF16, *LPIPS], 1144),
    "fp16 with LPIPS": (["precision=fp16", *LPIPS], 1111),
    "ST-LPIPS on a frame": ([BF16, "loss.perceptual=st_lpips", "loss.perceptual_frames=1", *LARGER], 1171),
    "moving average and LeCam": (["ema.decay=0.9", "gan.lecam_weight=0.1"], 823),
    "frozen encoder": (["freeze=encoder", "init_from=unused"], 580),
    "3-D discriminator": (["discriminator.kind=3d", BF16], 877),
    "group norm": (["discriminator.norm=group", BF16], 894),
    "recompute both": (["activation_checkpointing.mode=full", "model.depth=2"], 1103),
    "recompute every second": (["activation_checkpointing.mode=every", "model.depth=2"], 1059),
    "recompute selectively": (["activation_checkpointing.mode=selective", BF16], 906),
}
SLOW = ("bf16", "fp16 with LPIPS", "3-D discriminator", "group norm")
"""Steps that the quick run leaves out: others of theirs have the same parts."""
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in STEPS]
OTHERS: dict[str, dict[str, Any]] = {
    "a block more": {"words": ["model.depth=2"]},
    "plain over time": {"words": [BF16, "activation_checkpointing.mode=selective"], "over_time": "plain"},
    "host read": {"words": [], "mistake": "host read"},
    "copies": {"words": [], "mistake": "copies"},
    "two devices": {"words": [], "mistake": "two devices"},
}
PRESETS = ("paper", "released", "finetune_224", "finetune_decoder", "finetune_frames")


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> Path:
    """backend.cpp, built for this torch; kept in pytest's cache."""
    source = FOLDER / "backend.cpp"
    if torch.version.cuda is not None:
        pytest.skip("this torch has a CUDA backend of its own")
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to build the false backend with")
    digest = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    folder = request.config.cache.mkdir("fake_cuda")  # type: ignore[union-attr]
    built = folder / f"{digest}.so"
    if not built.is_file():
        torch_folder = Path(torch.__file__).parent
        include = torch_folder / "include"
        options = ["-O1", "-std=c++20", "-fPIC", "-shared", f"-I{include}", f"-I{include}/torch/csrc/api/include"]
        partial = folder / f"{digest}.{os.getpid()}.so"  # two processes of a test run may both be at it
        command = ["g++", *options, str(source), "-o", str(partial), f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=540)
        if done.returncode:
            assert not USUAL_TORCH, done.stderr[-3000:]
            pytest.skip(f"backend.cpp does not fit the headers of torch {torch.__version__}")
        partial.replace(built)
    return built


@cache
def found(library: Path, cases: str, seconds: int = 240) -> dict[str, dict[str, Any]]:
    """What a process of its own finds in these cases, given and returned as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.fake_cuda", str(library)],
        input=cases,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return results


def quick(library: Path, name: str) -> dict[str, Any]:
    """What is found in a case; one process serves all that the quick run has, and one the others."""
    chosen = {key: {"words": words} for key, (words, _) in STEPS.items() if (key in SLOW) == (name in SLOW)}
    return found(library, json.dumps(chosen if name in SLOW else chosen | OTHERS))[name]


def check(result: Mapping[str, Any]) -> None:
    assert result["error"] == ""
    assert result["host_reads"] == []
    assert result["elsewhere"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_step_stays_on_the_device_and_asks_for_no_value(library: Path, name: str) -> None:
    check(quick(library, name))


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_kernels_of_a_step(library: Path, name: str) -> None:
    kernels = quick(library, name)["kernels"]
    print(f"{name}: {sum(kernels.values())} {kernels}")
    if USUAL_TORCH:
        assert sum(kernels.values()) == STEPS[name][1], kernels


def test_recomputing_a_block_costs_its_forward_pass_and_no_more(library: Path) -> None:
    """A further block in each half shows the kernels of a block's forward pass. Of these, recomputation leaves out the
    last two, the last product and the residual sum, because the backward pass needs no result of theirs. The first
    block of each half adds the time positions on top; every second of two blocks is that first one."""
    plain, deeper = quick(library, "fp32")["kernels"], quick(library, "a block more")["kernels"]
    block, odd = divmod(deeper["generator forward"] - plain["generator forward"], 2)
    assert not odd
    every, full = (
        quick(library, name)["kernels"]["generator backward"] - deeper["generator backward"]
        for name in ("recompute every second", "recompute both")
    )
    first, other = block + 1 - 2, block - 2
    assert every == 2 * first
    assert full == 2 * first + 2 * other


def test_another_kernel_for_attention_over_time_stays_on_the_device(library: Path) -> None:
    check(quick(library, "plain over time"))


def test_a_host_read_is_found(library: Path) -> None:
    result = quick(library, "host read")
    assert len(result["host_reads"]) == 1
    assert "float(loss.detach())" in result["host_reads"][0]


def test_a_copy_between_host_and_device_is_found(library: Path) -> None:
    result = quick(library, "copies")
    assert len(result["host_reads"]) == 6, "three in the backward pass of each of the two networks"


def test_a_device_mismatch_is_found(library: Path) -> None:
    assert "FakeTensorDeviceMismatchError" in quick(library, "two devices")["error"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_every_precision_with_every_recomputation(library: Path, kind: str) -> None:
    choices = product(("fp32", "bf16", "fp16"), ("none", "full", "every", "selective"), (False, True))
    cases = {}
    for precision, mode, frozen in choices:
        words = [
            f"precision={precision}",
            f"activation_checkpointing.mode={mode}",
            f"discriminator.kind={kind}",
            *LPIPS,
        ]
        words += ["freeze=encoder", "init_from=unused"] if frozen else []
        cases[" ".join(words)] = {"words": words}
    for name, result in found(library, json.dumps(cases), 500).items():
        print(name, sum(result["kernels"].values()))
        check(result)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["base", "large"])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_at_their_own_size(library: Path, preset: str, model: str) -> None:
    files = [f"configs/train/{preset}.yaml", f"configs/model/{model}.yaml"]
    words = ["loss.lpips_weights=unused", "init_from=unused"]
    (result,) = found(library, json.dumps({"": {"words": words, "files": files, "clips": 1}}), 500).values()
    print(preset, model, sum(result["kernels"].values()), result["kernels"])
    check(result)

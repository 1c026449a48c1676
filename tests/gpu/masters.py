"""What becomes of exact weights and small gradients in 16 bits."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from model.lpips import LPIPS
from model.weights import load_tensors
from tests.gpu.findings import Context, held, measured
from tests.gpu.small_model import fill, small_config
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks
from trainer.objective import ReconstructionObjective


def run(context: Context) -> None:
    ranks = distributed.start(5)
    try:
        for precision in ("fp32", "bf16", "fp16") if context.on_gpu else ("fp32", "bf16"):
            for stage in (0, 1, 3):
                initial_weights(context, ranks, precision, stage)
    finally:
        distributed.stop()
    gradient_of_lpips(context)


def initial_weights(context: Context, ranks: Ranks, precision: str, stage: int) -> None:
    """The fp32 masters before the first step, against the file that they come from."""
    config = small_config(context.folder, f"precision={precision}", f"zero.stage={stage}")
    state = Autoencoder(config, ranks).generator.full_state()
    saved = load_tensors(context.folder / "init" / "model.safetensors")
    off = max(float(((state[f"vidtwin.{n}"] - w).abs() / w.abs().clamp(min=1e-12)).max()) for n, w in saved.items())
    name = f"{precision} ZeRO {stage}: fp32 masters at step 0, relative to init_from"
    held(name, off, 0.0, "the file")


def gradient_of_lpips(context: Context) -> None:
    """LPIPS's gradient at the reconstruction in 16 bits, against fp32. fp16 has no numbers below 6e-8."""
    clips, frames, side = (2, 16, 224) if context.on_gpu else (1, 2, 32)
    torch.manual_seed(0)
    network = LPIPS()
    fill(network)
    network = network.to(context.device)
    video = torch.rand(clips, 3, frames, side, side, device=context.device) * 2 - 1
    recon = (video + 0.1 * torch.randn_like(video)).clamp(-1, 1)
    weight = 0.05

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = recon.detach().requires_grad_()
        whole = ReconstructionObjective(weight, copy.deepcopy(network).work_in(dtype))(video, leaf).error
        plain = ReconstructionObjective(0.0, None)(video, leaf).error
        return torch.autograd.grad(whole - plain, leaf)[0]

    exact = gradient(torch.float32)
    half, *finer = (torch.bfloat16, torch.float16) if context.on_gpu else (torch.bfloat16,)
    coarse = float((gradient(half) - exact).norm() / exact.norm())
    measured("LPIPS's gradient in bf16: its distance from fp32 as a share of its norm", coarse)
    for dtype in finer:  # it has three bits more; worse than bf16 it can only be where it has no numbers small enough
        off = float((gradient(dtype) - exact).norm() / exact.norm())
        held("LPIPS's gradient in fp16: the same", off, coarse, "bf16's distance")

"""PSNR, SSIM and LPIPS of fixed pictures against the same in fp64 on the CPU, with TF32 on and off."""

from __future__ import annotations

import torch
from torch import Tensor

from model.lpips import LPIPS
from tests.gpu.findings import Context, held
from tests.gpu.small_model import fill
from trainer.evaluation.metrics import psnr, ssim

SIDE = 96


def pictures() -> tuple[Tensor, Tensor]:
    """Frames and noisy ones [6, 3, S, S] in [0, 1]: textured, and flat and bright, where SSIM's variances cancel."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    textured = 0.5 + 0.4 * torch.sin(0.31 * x) * torch.cos(0.17 * y)
    flat = torch.full((SIDE, SIDE), 0.8)
    grain = torch.sin(12.9898 * x + 78.233 * y).mul(43758.5453).frac()
    frames = torch.stack([textured, flat])[:, None].expand(2, 3, SIDE, SIDE)
    noisy = [(frames + size * grain).clamp(0, 1) for size in (0.005, 0.02, 0.05)]
    return frames.repeat(3, 1, 1, 1), torch.cat(noisy)


def run(context: Context) -> None:
    frames, noisy = pictures()
    lpips = LPIPS()
    fill(lpips)
    with torch.no_grad():
        wide = lpips.double()
        exact = {
            "PSNR": _psnr_exactly(frames.double(), noisy.double()),
            "SSIM": ssim(frames.double(), noisy.double()).double(),
            "LPIPS": wide(frames.double() * 2 - 1, noisy.double() * 2 - 1).flatten(),
        }
        network = lpips.float().to(context.device)
        a, b = frames.to(context.device), noisy.to(context.device)
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            found = {"PSNR": psnr(a, b), "SSIM": ssim(a, b), "LPIPS": network(a * 2 - 1, b * 2 - 1).flatten()}
            for metric, values in found.items():
                apart = ((values.cpu().double() - exact[metric]).abs() / exact[metric].abs()).max()
                # LPIPS is a network of convolutions, and TF32 has 11 bits; PSNR and SSIM must not depend on it
                allowed = 5e-2 if metric == "LPIPS" and tf32 else 1e-3 if metric == "LPIPS" else 1e-5
                held(f"{metric}, TF32 {'on' if tf32 else 'off'}", float(apart), allowed, "fp64 on the CPU")


def _psnr_exactly(a: Tensor, b: Tensor) -> Tensor:
    return -10.0 * (a - b).square().mean(dim=(1, 2, 3)).log10()

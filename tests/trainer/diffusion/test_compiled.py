"""Blocks of a DiT that torch.compile has translated compute the same, also where they recompute."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.dit import DiT
from tests.model.tiny_dit import TIMES, conditioned, latents, lively
from trainer.engine.compiled import compile_blocks

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]


def said(model: DiT, condition: Any) -> list[Tensor]:
    """The prediction, and the gradients of its squares."""
    model.zero_grad()
    given = [part.float() for part in latents()]
    predicted = model(*given, TIMES, condition)
    sum(part.square().sum() for part in predicted).backward()
    return [*predicted, *(weight.grad for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_compiled_blocks_compute_the_same(recompute: Any) -> None:
    config, condition = conditioned("text")
    config = replace(config, qk_norm=True)
    eager, compiled = lively(config).float().train(), lively(config).float().train()
    compiled.set_activation_checkpointing(recompute)
    compile_blocks(compiled)
    for part, other in zip(said(compiled, condition), said(eager, condition), strict=True):
        torch.testing.assert_close(part, other, rtol=1e-4, atol=1e-4 * float(other.detach().abs().max()))

"""The optimizer of one network by closed forms: what decays, what is clipped, and which step is skipped."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainer.config.learning import OptimizerConfig, OptimizerName
from trainer.engine.optimizer import Guard, build_optimizer


@pytest.mark.parametrize("name", list(OptimizerName))
def test_only_the_group_that_decays_has_the_decay_of_the_settings(name: OptimizerName) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.125, betas=(0.5, 0.75), eps=1e-3)
    some, others = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([([some], True), ([others], False)], config, None)
    assert [(group["params"], group["weight_decay"]) for group in optimizer.param_groups] == [
        ([some], 0.125),
        ([others], 0.0),
    ]
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.0, (0.5, 0.75), 1e-3)


@pytest.mark.parametrize(("clip", "kept"), [(0.0, 1.0), (2.5, 0.5), (50.0, 1.0)])
def test_the_guard_clips_a_gradient_of_norm_5_and_0_leaves_it_whole(clip: float, kept: float) -> None:
    guard = Guard(clip)
    weights = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    optimizer = build_optimizer([(weights, False)], OptimizerConfig(), guard)
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([0.0, -4.0])
    optimizer.step()
    assert guard.norm is not None
    assert guard.skipped is not None
    assert (guard.norm.item(), guard.skipped.item()) == (5.0, 0.0), "measured before it is clipped"
    assert weights[0].grad.tolist() == pytest.approx([3 * kept], rel=1e-5)
    assert weights[1].grad.tolist() == pytest.approx([0, -4 * kept], rel=1e-5)
    assert guard.weights == weights[:2], "the third one has no gradient"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_whose_gradient_is_not_finite_changes_neither_weights_nor_moments(bad: float) -> None:
    """Adam moves each weight by its learning rate in the first step, against the sign of its gradient."""
    guard, weight = Guard(1.0), nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = build_optimizer([([weight], False)], OptimizerConfig(), guard)
    optimizer.param_groups[0]["lr"] = 0.25
    for gradient, skipped in ((bad, 1.0), (0.5, 0.0)):
        weight.grad = torch.tensor([gradient, 0.5])
        optimizer.step()
        assert guard.skipped is not None
        assert guard.skipped.item() == skipped
        wanted = [1.0, 2.0] if skipped else [0.75, 1.75]
        assert weight.tolist() == pytest.approx(wanted, rel=1e-6)

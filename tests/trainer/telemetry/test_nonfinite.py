"""Finding what was not finite, in one process; test_two_ranks.py has it at every ZeRO stage and over ranks."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.config.learning import OptimConfig
from trainer.distributed import Ranks
from trainer.engine.gradient_watch import GradientWatch
from trainer.telemetry.nonfinite import SkippedSteps, _together, describe

pytestmark = pytest.mark.numeric


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_only_the_gradients_that_were_not_finite_are_told(bad: float) -> None:
    model = network()
    watch = GradientWatch(model)
    watch.switch(True)
    factor = torch.ones(2)
    factor[1] = bad
    model[0].requires_grad_(True)
    hidden = model[1](model[0](torch.ones(5, 3))).detach()
    (model[2](hidden) * factor).sum().backward()  # the first layer has no gradient
    gradients = watch.take()
    assert gradients is not None
    assert dict(zip(gradients.names, gradients.finite.tolist(), strict=True)) == {"2.weight": False, "2.bias": False}
    assert watch.take() is None


def test_every_micro_batch_counts_and_switched_off_nothing_is_seen() -> None:
    model = network()
    watch = GradientWatch(model)
    watch.switch(True)
    for scale in (math.nan, 1.0):  # the second does not wash the first away
        (model(torch.ones(1, 3)) * scale).sum().backward()
    gradients = watch.take()
    assert gradients is not None
    assert not gradients.finite.any()
    assert gradients.names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    watch.switch(False)
    model(torch.ones(1, 3)).sum().backward()
    assert watch.take() is None


def test_switched_on_twice_it_looks_once_and_one_switch_ends_it() -> None:
    model = network()
    watch = GradientWatch(model)
    for on in (True, True, False):
        watch.switch(on)
    model(torch.ones(1, 3)).sum().backward()
    assert watch.take() is None


def test_the_ranks_where_it_began_are_those_with_the_most_terms() -> None:
    clips = {"clips": ["a", "b"], "gradients": {}, "step": 7}
    reduced = ["adaptive_weight", "total_loss"]
    row = _together((clips | {"terms": reduced}, clips | {"terms": ["l1", *reduced]}, clips | {"terms": reduced}))
    assert row == {
        "step": 7,
        "terms": ["adaptive_weight", "l1", "total_loss"],
        "gradients": {},
        "clips": {"1": ["a", "b"]},
    }
    assert list(_together((clips | {"terms": []}, clips | {"terms": []}))["clips"]) == ["0", "1"]


def test_every_step_of_a_row_that_ends_a_run_can_be_explained(alone: Ranks, tmp_path: Path) -> None:
    """Where a log step comes only after all of them."""
    known, most = SkippedSteps(tmp_path / "nonfinite.jsonl", alone), OptimConfig().max_skipped
    for step in range(1, most + 6):
        bad = torch.tensor(float(step > 5))
        known.add(step, [f"clip {step}"], bad, {"loss": bad == 0, "grad_norm_generator": bad == 0}, {})
    rows = known.explain()
    assert [row["step"] for row in rows] == list(range(6, most + 6))
    assert rows[0] == {"step": 6, "terms": ["loss"], "gradients": {}, "clips": {"0": ["clip 6"]}}
    assert [json.loads(line) for line in known.path.read_text().splitlines()] == rows
    assert known.explain() == []
    known.add(99, ["clip"], torch.ones(()), {}, {})
    known.forget()
    assert known.explain() == []


def test_the_message_is_cut_where_it_would_be_long() -> None:
    gradients = {"generator": {"count": 9, "of": 12, "first": ["w1", "w2", "w3", "w4", "w5"]}}
    row = {"step": 3, "terms": [], "gradients": gradients, "clips": {"0": [f"c{n}" for n in range(11)]}}
    assert describe(row).splitlines() == [
        "  loss terms: all finite",
        "  gradients of the generator: 9 of 12: w1, w2, w3, w4, w5, and 4 more",
        "  clips of rank 0: c0, c1, c2, c3, c4, c5, c6, c7, and 3 more",
    ]

"""The KL divergence's weight against its closed form, and what of the loss a run may not change when it goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.trainer.toy import toy
from trainer.config.objective import LossConfig
from trainer.config.train import TrainConfig
from trainer.run import Refused, run

pytestmark = pytest.mark.numeric


def test_the_kl_weight_rises_in_a_straight_line_from_0() -> None:
    rising = LossConfig(kl_weight=0.5, kl_warmup=4)
    assert [rising.kl_weight_at(step) for step in range(6)] == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    assert LossConfig(kl_weight=0.5).kl_weight_at(0) == 0.5


def test_of_a_finished_run_such_settings_are_said_to_have_no_effect(config: TrainConfig) -> None:
    """A run that is not finished, or has another network, is one with other settings."""
    run(config, toy())
    fixed = replace(config.loss, learn_logvar=False)
    no_effect = r"has finished its 9 steps, so these settings have no effect \(loss\.learn_logvar: True -> False\)"
    with pytest.raises(Refused, match=no_effect):
        run(replace(config, loss=fixed), toy())
    with pytest.raises(Refused, match=r"9 steps, so these settings have no effect \(seed: 0 -> 3\)"):
        run(replace(config, seed=3), toy())
    for others in ({"steps": 12}, {"model": replace(config.model, depth=3)}):
        with pytest.raises(Refused, match=r"belongs to a run with other settings \(loss\.learn_logvar: True -> False"):
            run(replace(config, loss=fixed, **others), toy())


def test_a_logvar_that_stays_may_not_change_and_one_that_learns_may_not_stay(config: TrainConfig) -> None:
    fixed = replace(config, loss=replace(config.loss, learn_logvar=False, logvar=-1.0))
    run(fixed, toy(stop_at=2))
    with pytest.raises(Refused, match=r"\(loss\.logvar: -1\.0 -> -2\.0\)"):
        run(replace(fixed, loss=replace(fixed.loss, logvar=-2.0)), toy())
    with pytest.raises(Refused, match=r"loss\.learn_logvar: False -> True"):
        run(replace(fixed, loss=replace(fixed.loss, learn_logvar=True)), toy())
    warming = replace(fixed, loss=replace(fixed.loss, kl_warmup=100))
    run(warming, toy())

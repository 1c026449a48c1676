"""Learning rates against their closed form."""

import math

import pytest

from trainer.config.learning import OptimConfig, OptimizerConfig, Shape

pytestmark = pytest.mark.numeric


def test_warm_up_is_linear_and_cosine_ends_at_the_minimum() -> None:
    config = OptimizerConfig(lr=1e-3, lr_start=1e-4, lr_min=2e-4, warmup=10)
    assert config.lr_at(0, 110) == 1e-4
    assert config.lr_at(5, 110) == pytest.approx(5.5e-4)
    assert config.lr_at(10, 110) == 1e-3
    assert config.lr_at(60, 110) == pytest.approx(6e-4)  # half-way in time is half-way in rate
    assert config.lr_at(110, 110) == pytest.approx(2e-4)
    quarter = 2e-4 + 0.5 * 8e-4 * (1 + math.cos(math.pi / 4))
    assert config.lr_at(35, 110) == pytest.approx(quarter)
    rates = [config.lr_at(step, 110) for step in range(111)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_constant_stays_at_the_peak_without_warm_up() -> None:
    config = OptimizerConfig(lr=1e-3, warmup=0, schedule=Shape.constant)
    assert {config.lr_at(step, 7) for step in range(20)} == {1e-3}


def test_a_clip_that_is_off_is_to_be_set_and_not_lowered() -> None:
    assert OptimConfig(clip=1.0).smaller_steps("generator") == "lower optim.generator.lr or optim.clip"
    assert (
        OptimConfig(clip=0.0).smaller_steps("generator")
        == "lower optim.generator.lr or set optim.clip, which is 0 (off)"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, r"optim\.x\.lr=0\.0 must be positive"),
        ({"lr_start": 1.0}, r"optim\.x\.lr_start=1\.0 must lie in \[0, optim\.x\.lr"),
        ({"lr_min": -1.0}, r"optim\.x\.lr_min=-1\.0"),
        ({"warmup": -1}, r"set optim\.x\.warmup=0 for none"),
        ({"betas": (0.9, 1.0)}, r"optim\.x\.betas"),
        ({"weight_decay": -0.1}, r"optim\.x\.weight_decay"),
        ({"eps": 0.0}, r"optim\.x\.eps"),
    ],
)
def test_impossible_settings_are_refused_by_name(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**change).check("optim.x")  # type: ignore[arg-type]

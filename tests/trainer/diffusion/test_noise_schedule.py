"""Noise schedules and flow matching against closed forms, identities, and the schedulers of diffusers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.dit_config import NoiseSchedule, Objective, ProcessConfig
from trainer.config.diffusion import DiffusionLossConfig
from trainer.diffusion import flow, noise_schedule
from trainer.diffusion.noise_schedule import alpha_bars, min_snr_weight, signal_to_noise
from trainer.diffusion.process import process_of

ALL = [ProcessConfig(schedule=schedule, zero_terminal_snr=zero) for schedule in NoiseSchedule for zero in (False, True)]


def ids(config: ProcessConfig) -> str:
    return f"{config.schedule.value}{'-zero' if config.zero_terminal_snr else ''}"


def test_alpha_bar_is_the_product_of_the_definition() -> None:
    linear, scaled = (alpha_bars(ProcessConfig(schedule=NoiseSchedule(name))) for name in ("linear", "scaled_linear"))
    for bars, beta in (
        (linear, lambda t: 1e-4 + (0.02 - 1e-4) * t / 999),
        (scaled, lambda t: (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * t / 999) ** 2),
    ):
        for step in (0, 1, 500, 999):
            exact = math.exp(math.fsum(math.log1p(-beta(t)) for t in range(step + 1)))
            assert float(bars[step]) == pytest.approx(exact, rel=1e-10)


def test_the_cosine_is_its_closed_form_as_far_as_no_step_is_cut() -> None:
    bars = alpha_bars(ProcessConfig(schedule=NoiseSchedule.cosine))
    for step in (0, 10, 500, 900, 998):
        angle = (((step + 1) / 1000) + 0.008) / 1.008 * math.pi / 2
        exact = math.cos(angle) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        assert float(bars[step]) == pytest.approx(exact, rel=1e-6)
    assert float(bars[999]) == pytest.approx(float(bars[998]) * 1e-3, rel=1e-9)


@pytest.mark.parametrize("config", ALL, ids=ids)
def test_the_snr_falls_from_step_to_step(config: ProcessConfig) -> None:
    snr = signal_to_noise(alpha_bars(config))
    assert bool((snr[1:] < snr[:-1]).all())
    assert bool((snr[:-1] > 0).all())
    assert (float(snr[-1]) == 0.0) == config.zero_terminal_snr


@pytest.mark.parametrize("schedule", list(NoiseSchedule))
def test_rescaled_the_last_step_is_pure_noise_and_the_first_what_it_was(schedule: NoiseSchedule) -> None:
    plain = alpha_bars(ProcessConfig(schedule=schedule))
    rescaled = alpha_bars(ProcessConfig(schedule=schedule, zero_terminal_snr=True))
    assert float(rescaled[-1]) == 0.0
    assert float(rescaled[0]) == pytest.approx(float(plain[0]), rel=1e-12)
    # the roots are moved along a straight line: equal ratios of distances
    before, after = plain.sqrt(), rescaled.sqrt()
    ratio = (after[0] - after[500]) / (before[0] - before[500])
    torch.testing.assert_close(after[0] - after[1:], ratio * (before[0] - before[1:]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("config", ALL, ids=ids)
def test_x0_noise_and_velocity_say_the_same(config: ProcessConfig) -> None:
    source = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(1000, 3, dtype=torch.float64, generator=source) for _ in range(2))
    bar = alpha_bars(config)[:, None]
    x_t = noise_schedule.noised(x0, eps, bar)
    v = bar.sqrt() * eps - (1 - bar).sqrt() * x0
    close = {"rtol": 1e-6, "atol": 1e-6}  # a division by sqrt(alpha_bar) loses up to half of the digits
    torch.testing.assert_close(noise_schedule.eps_of_x0(x_t, x0, bar), eps, **close)
    torch.testing.assert_close(noise_schedule.v_of_x0(x_t, x0, bar), v, **close)
    torch.testing.assert_close(noise_schedule.x0_of_v(x_t, v, bar), x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(noise_schedule.eps_of_v(x_t, v, bar), eps, rtol=1e-12, atol=1e-12)
    some = bar[:, 0] > 1e-4
    torch.testing.assert_close(noise_schedule.x0_of_eps(x_t, eps, bar)[some], x0[some], **close)
    torch.testing.assert_close(x0.square() + eps.square(), x_t.square() + v.square(), rtol=1e-12, atol=1e-12)


def test_the_min_snr_weight_makes_the_error_in_eps_count_min_snr_gamma_over_snr() -> None:
    bar = alpha_bars(ProcessConfig())
    snr = signal_to_noise(bar)
    x0, wrong, eps = (
        torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(3)
    )
    x_t = noise_schedule.noised(x0, eps, bar[:, None])
    in_eps = (noise_schedule.eps_of_x0(x_t, wrong, bar[:, None]) - eps).square()[:, 0]
    in_x0 = (wrong - x0).square()[:, 0]
    torch.testing.assert_close(
        min_snr_weight(snr, 5.0) * in_x0, snr.clamp(max=5.0) / snr * in_eps, rtol=1e-6, atol=1e-12
    )
    assert bool((min_snr_weight(snr, 0.0) == 1).all())
    assert float(min_snr_weight(torch.tensor([0.0]), 5.0)) == 0.0


def test_flow_goes_straight_from_the_clip_to_the_noise() -> None:
    x0, eps = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    assert torch.equal(flow.between(x0, eps, torch.zeros(())), x0)
    assert torch.equal(flow.between(x0, eps, torch.ones(())), eps)
    sigma = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.functional.jacobian(lambda s: flow.between(x0, eps, s), sigma)
    torch.testing.assert_close(slope, flow.velocity(x0, eps))
    seen = flow.between(x0, eps, sigma.detach())
    torch.testing.assert_close(flow.x0_of_velocity(seen, flow.velocity(x0, eps), sigma.detach()), x0)


def test_times_of_flow_are_logit_normal_and_shifted() -> None:
    config, loss = ProcessConfig(objective=Objective.flow, shift=3.0), DiffusionLossConfig(logit_mean=0.5)
    middle = [(place + 0.5) / 4000 for place in range(4000)]
    times = process_of(config, loss, 4096).times(middle)
    unshifted = times / (3.0 - 2.0 * times)  # the inverse of the shift
    logits = torch.logit(unshifted)
    assert float(logits.mean()) == pytest.approx(0.5, abs=1e-6)
    assert float(logits.std()) == pytest.approx(1.0, abs=2e-3)
    assert float(logits[2000 + 1366]) == pytest.approx(0.5 + 1.0, abs=1e-2)  # one deviation above lie 15.87 %
    assert flow.shift_of_size(4 * 4096) == 2.0  # a square of twice the side
    assert [flow.shifted(time, 3.0) for time in (0.0, 0.5, 1.0)] == [0.0, 0.75, 1.0]


@pytest.mark.parametrize(("mean", "deviation"), [(-10.0, 99.0), (10.0, 99.0), (0.0, 1e-9)])
def test_times_of_flow_exist_at_the_ends_of_the_settings(mean: float, deviation: float) -> None:
    """A time lies on the same side of 1/2 as its logit, also where its exponential has no double."""
    loss = DiffusionLossConfig(logit_mean=mean, logit_deviation=deviation)
    for shift in (1e-3, 1.0, 1000.0):
        process = process_of(ProcessConfig(objective=Objective.flow, shift=shift), loss, 4096)
        times = process.times([0.5**53, 0.25, 0.5, 0.75, 1 - 0.5**53])
        assert bool(((times > 0) & (times <= 1)).all())
        assert bool((times.diff() >= 0).all())
        assert float(times[2]) == pytest.approx(shift / (shift + math.exp(-mean)), rel=1e-9)


def test_steps_are_all_as_likely() -> None:
    process = process_of(replace(ProcessConfig(), steps=10), DiffusionLossConfig(), 1)
    times = process.times([(place + 0.5) / 1000 for place in range(1000)])
    assert torch.equal(torch.bincount(times.long()), torch.full((10,), 100))


# ---- against diffusers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ALL, ids=ids)
def test_the_schedulers_of_diffusers_have_the_same_steps(config: ProcessConfig) -> None:
    diffusers = pytest.importorskip("diffusers", reason="pip install -e '.[diffusers]'")
    first, last = noise_schedule.SCALED_LINEAR if config.schedule.value == "scaled_linear" else noise_schedule.LINEAR
    scheduler: Any = diffusers.DDIMScheduler(
        beta_start=first,
        beta_end=last,
        beta_schedule={"cosine": "squaredcos_cap_v2"}.get(config.schedule.value, config.schedule.value),
        rescale_betas_zero_snr=config.zero_terminal_snr,
        prediction_type="v_prediction",
    )
    bars = alpha_bars(config)
    torch.testing.assert_close(bars, scheduler.alphas_cumprod.double(), rtol=2e-4, atol=1e-7)  # theirs is fp32
    source = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, 2, dtype=torch.float64, generator=source) for _ in range(2))
    steps = torch.tensor([0, 400, 999])
    theirs: Tensor = scheduler.add_noise(x0, eps, steps)
    torch.testing.assert_close(noise_schedule.noised(x0, eps, bars[steps, None]), theirs, rtol=1e-4, atol=1e-4)
    velocity: Tensor = scheduler.get_velocity(x0, eps, steps)
    found = noise_schedule.v_of_x0(theirs, x0, bars[steps, None])
    torch.testing.assert_close(found[1:], velocity[1:], rtol=1e-3, atol=1e-3)


def test_the_euler_scheduler_of_diffusers_has_the_same_flow() -> None:
    diffusers = pytest.importorskip("diffusers", reason="pip install -e '.[diffusers]'")
    shift = 1.7
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    times = torch.linspace(1000, 1, 1000).double() / 1000
    ours = torch.tensor([flow.shifted(float(time), shift) for time in times])
    torch.testing.assert_close(scheduler.sigmas[:1000], ours.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scheduler.timesteps, (1000 * ours).float(), rtol=1e-5, atol=1e-3)
    x0, eps = torch.randn(2, 3), torch.randn(2, 3)
    sigma = scheduler.sigmas[300]
    seen = scheduler.scale_noise(x0, scheduler.timesteps[300:301], eps)
    torch.testing.assert_close(flow.between(x0, eps, sigma), seen)
    # with the perfect velocity one step of any length lands where the line is
    scheduler.set_timesteps(4)
    start = scheduler.sigmas[0]
    stepped = scheduler.step(flow.velocity(x0, eps), scheduler.timesteps[0], flow.between(x0, eps, start)).prev_sample
    torch.testing.assert_close(stepped, flow.between(x0, eps, scheduler.sigmas[1]), rtol=1e-5, atol=1e-5)

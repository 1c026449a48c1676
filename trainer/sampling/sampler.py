"""From noise to latents with the schedulers of diffusers: DDIM for x0-prediction, Euler for flow matching.

B samples; both latents of a sample lie one behind the other in a row of `space.values` numbers, because a scheduler
takes one tensor a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from data_pipeline.read.texts import padded_texts
from model.dit import DiT
from model.dit_config import LatentSpace, Objective, ProcessConfig
from model.dit_parts import ClassCondition, Condition, TextCondition
from model.network import Latents
from trainer.diffusion import flow, noise_schedule
from trainer.diffusion.draws import draw_clip, draw_noise

PURPOSE_SAMPLING = 103
"""The purpose that `order.draw` is given, beside those of training and validation."""
Predict = Callable[[Latents, Tensor], Latents]
"""Noisy latents and what the network is told of the times, [B] -> x0 or velocity, by `process.objective`."""


def seeds_of(seed: int, label: str, numbers: Sequence[int]) -> list[int]:
    """The seed of the noise of each sample; it follows from the run's seed, the class and the sample's number alone."""
    return [draw_clip(seed, number, label, PURPOSE_SAMPLING).seed for number in numbers]


def scheduler_of(process: ProcessConfig, values: int, steps: int) -> Any:
    """A scheduler of diffusers that is set to `steps` steps, from pure noise to no noise.

    Args:
        process: the noise process that the network undoes.
        values: numbers in both latents, by which flow matching may shift its times.
        steps: of the sampler.
    Raises:
        ValueError: an x0-prediction whose steps are no multiple of `steps`, because the last step would miss x0.
    """
    import diffusers  # an extra

    if process.objective is Objective.flow:
        shift = process.shift or flow.shift_of_size(values)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)  # because the times are already shifted
        scheduler.set_timesteps(sigmas=[flow.shifted((steps - step) / steps, shift) for step in range(steps)])
        return scheduler
    if process.steps % steps:
        raise ValueError(
            f"--steps {steps} does not divide the {process.steps} steps of the model's noise process; choose a divisor"
        )
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=process.steps,
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",  # begins at the last step, which is the closest to pure noise
    )
    scheduler.alphas_cumprod = noise_schedule.alpha_bars(process)
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def sample(
    predict: Predict,
    space: LatentSpace,
    process: ProcessConfig,
    seeds: Sequence[int],
    *,
    steps: int,
    device: torch.device,
) -> Latents:
    """Normalised latents, fp32, one for each seed.

    Args:
        predict: what the network says.
        space, process: the network's.
        seeds: of the noise (`seeds_of`).
        steps: calls of `predict`.
    Raises:
        ValueError: see `scheduler_of`.
    """
    scheduler = scheduler_of(process, space.values, steps)
    rows = _together(draw_noise(seeds, space, device))
    for time in scheduler.timesteps:
        told = torch.full((len(seeds),), float(time), dtype=torch.float64, device=device)
        predicted = _together(predict(_apart(rows, space), told)).float()
        rows = scheduler.step(predicted, time, rows).prev_sample.float()
    return _apart(rows, space)


def guided(dit: DiT, classes: Sequence[str], guidance: float, texts: Sequence[Tensor] = ()) -> Predict:
    """The prediction of a DiT that is guided to classes or texts: without + guidance x (with - without the condition).

    Args:
        dit: in evaluation mode.
        classes: of each sample; none for a DiT without a condition; without meaning where there are texts.
        guidance: 1 = the condition as it is, more = further to it, 0 = as if there was none.
        texts: token embeddings of the prompt of each sample, float32 [L, text width], for a DiT that knows captions.
    Raises:
        ValueError: a class that the DiT does not know.
    """
    device = dit.last.structure.weight.device
    condition: Condition = None
    if texts:
        tokens, mask = padded_texts([text.numpy() for text in texts])
        given = torch.ones(len(texts), dtype=torch.bool, device=device)
        condition = TextCondition(tokens.to(device), mask.to(device), given)
    elif classes:
        condition = ClassCondition(torch.tensor(dit.class_numbers(classes), device=device))

    def predict(noisy: Latents, times: Tensor) -> Latents:
        with_it = dit(noisy.structure, noisy.dynamics, times, condition)
        if condition is None or guidance == 1:
            return with_it
        dropped = condition.dropped(torch.ones(len(times), dtype=torch.bool, device=device))
        without = dit(noisy.structure, noisy.dynamics, times, dropped)
        return Latents(*(far + guidance * (near - far) for near, far in zip(with_it, without, strict=True)))

    return predict


def _together(latents: Latents) -> Tensor:
    return torch.cat([values.flatten(1) for values in latents], dim=1)


def _apart(rows: Tensor, space: LatentSpace) -> Latents:
    structure, dynamics = rows.split([math.prod(space.structure_shape), math.prod(space.dynamics_shape)], dim=1)
    return Latents(structure.reshape(-1, *space.structure_shape), dynamics.reshape(-1, *space.dynamics_shape))

"""Estimates of a DiT against closed forms, torch's own counter of operations, and what DeepSpeed's ranks allocate."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import VidTwinConfig
from model.dit import DiT
from model.dit_parts import ClassCondition
from tests.trainer.diffusion.cases import SPACE, STATISTICS, tiny_config
from tests.trainer.estimate.test_memory import assert_near, measured
from tests.trainer.measured_memory import DIT_CASES
from trainer.config.diffusion import DiffusionConfig
from trainer.config.learning import Recompute
from trainer.config.loader import load_config
from trainer.estimate.memory import estimate
from trainer.estimate.speed import Speed, run_text
from trainer.estimate.trace import Trace
from trainer.estimate.trace_dit import space_of_model, trace_dit

CONFIGS = Path(__file__).parents[3] / "configs"
CLASSED = ("dit.condition=class", "dit.structure_patch=[1,1,1]", "dit.dynamics_patch=[1,1]")
CLIPS = 3


@cache
def traced(*words: str) -> Trace:
    """A step of `CLIPS` clips of the tiny DiT."""
    return trace_dit(tiny_config("run", *CLASSED, *words), CLIPS, SPACE)


def test_parameters_are_those_of_the_layers() -> None:
    """The paper's DiT on the base model's latents, added up by hand: weights and biases of every layer.

    Two blocks stand for 18, which would take seconds.
    """
    words = ["output=x", "data.shards=x", "dit.depth=2"]
    config = load_config(DiffusionConfig, [CONFIGS / "diffusion" / "paper.yaml"], words)
    space = space_of_model(VidTwinConfig(), 101)
    assert (space.structure_shape, space.dynamics_shape) == ((4, 16, 7, 7), (8, 16, 14))

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    c, k, hidden, structure, dynamics = 1152, 256, 4 * 1152, 2 * 4, 2 * 8
    attention = linear(c, 3 * c) + linear(c, c)
    cross = linear(c, c) + linear(k, 2 * c) + linear(c, c)
    block = linear(c, 6 * c) + attention + cross + linear(c, hidden) + linear(hidden, c)
    ends = linear(structure, c) + linear(dynamics, c) + linear(c, structure) + linear(c, dynamics) + linear(c, 2 * c)
    expected = 2 * block + ends + linear(256, c) + linear(c, c) + 102 * k
    network = trace_dit(config, 1, space).network
    assert (network.learning, network.frozen) == (expected, 0)


def test_operations_are_those_that_torch_counts() -> None:
    """Torch counts the attention where it is made of matrix products; there its backward pass has one product less."""
    config = tiny_config("run", *CLASSED)
    dit = DiT(config.dit, SPACE, config.process, STATISTICS)
    for weight in dit.parameters():  # gates of 0 would not change the count; they are set so that nothing is skipped
        torch.nn.init.normal_(weight)
    structure, dynamics = torch.randn(CLIPS, *SPACE.structure_shape), torch.randn(CLIPS, *SPACE.dynamics_shape)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        made = dit(structure, dynamics, torch.rand(CLIPS), ClassCondition(torch.arange(CLIPS)))
        (made.structure.sum() + made.dynamics.sum()).backward()
    tokens, width, blocks = dit.tokens, 24, 2
    again = blocks * 2 * CLIPS * width * (tokens * tokens + tokens * 1)  # of the tokens among each other, of the class
    assert traced().flops == counter.get_total_flops() + again


def test_recomputation_saves_memory_and_costs_operations() -> None:
    """What `selective` repeats is the last product of each MLP, because the gate's gradient needs its result."""
    none, selective, every, full = (
        traced("dit.depth=4", f"activation_checkpointing.mode={mode.value}")
        for mode in (Recompute.none, Recompute.selective, Recompute.every, Recompute.full)
    )
    assert full.activations < selective.activations < none.activations
    assert full.activations < every.activations < none.activations
    tokens, width, blocks = 4 * 2 * 2 + 4 * 4, 24, 4
    assert selective.flops - none.flops == blocks * 2 * CLIPS * tokens * width * 4 * width
    assert selective.flops < every.flops < full.flops


def test_memory_by_stage_and_offload() -> None:
    """fp32 on three ranks: Adam's two moments, and from stage 1 masters, of a third of the weights."""
    found = estimate(
        tiny_config("run", *CLASSED, "data.global_batch=3"), 3, modes=False, tracer=lambda c, n: trace_dit(c, n, SPACE)
    )
    count = found.trace.network.learning
    share = -(-count // 3)
    buffers = found.trace.network.buffer_bytes
    assert [found.stages[stage].optimizer for stage in range(4)] == [8 * count, *[12 * share] * 3]
    assert [found.stages[stage].weights - buffers for stage in range(4)] == [*[4 * count] * 3, -(-4 * count // 3)]
    assert [found.stages[stage].average for stage in range(4)] == [4 * count, *[4 * share] * 3]
    assert found.stages[0].discriminator == found.stages[0].perceptual == 0
    offloaded = estimate(
        tiny_config("run", *CLASSED, "data.global_batch=3", "zero.offload_optimizer=true"),
        3,
        modes=False,
        tracer=lambda c, n: trace_dit(c, n, SPACE),
    ).stages[1]
    assert (offloaded.optimizer, offloaded.average, offloaded.host) == (0, 0, 20 * share)


def test_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dit\.condition=class needs labels"):
        trace_dit(tiny_config("run", "dit.condition=class"), 1, space_of_model(VidTwinConfig(), 0))
    with pytest.raises(ValueError, match=r"dit\.structure_patch=\[3, 1, 1\]: 3 does not divide the 16 moments"):
        trace_dit(tiny_config("run", "dit.structure_patch=[3,1,1]"), 1, space_of_model(VidTwinConfig(), 0))


def test_hours_and_cost_are_products() -> None:
    """7200 steps of one second on four GPUs at 2.5: two hours, eight GPU hours, 20."""
    speed = Speed(step=1.0, before=None, communication=0.0, clips=6)
    line = "2 hours for 7200 steps, 8 GPU hours, which cost 20 at 2.5 an hour;"
    assert run_text(speed, 7200, 4, 2.5).startswith(line)
    assert "cost" not in run_text(speed, 7200, 4)


@pytest.mark.slow
def test_peak_of_a_step_of_a_dit_on_two_ranks(tmp_path: Path) -> None:
    """What the processes of the real engines take, within the 15 % that docs/training_estimate.md promises."""
    assert_near(measured(tmp_path, *DIT_CASES), tmp_path)

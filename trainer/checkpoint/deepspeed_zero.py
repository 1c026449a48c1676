"""Where a live DeepSpeed engine keeps the masters and moments of its weights, and how they are set from outside.

DeepSpeed 0.19 has no public way for this at every ZeRO stage, so this file uses private parts of it (`_hp_mapping`,
`_hp_optimizer_states_linked`, `_reassign_or_swap_out_partitioned_parameters`) and attributes that it does not document.
No other file of this folder does. tests/trainer/checkpoint/test_reshard.py loads every stage from every other one bit
for bit, so it fails when a new DeepSpeed changes any of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.checkpoint.zero_files import Piece, Sharding
from trainer.engine.engine import Engine


def sharding_of(engine: Engine) -> Sharding:
    """How a live engine's state is divided."""
    inner = engine.engine
    precision = "bf16" if inner.bfloat16_enabled() else "fp16" if inner.fp16_enabled() else "fp32"
    return Sharding(inner.world_size, engine.stage, precision)


def learning_weights(engine: Engine) -> dict[str, nn.Parameter]:
    """Name -> weight that the optimizer changes."""
    return {name: weight for name, weight in engine.module.named_parameters() if weight.requires_grad}


def local_pieces(engine: Engine) -> dict[str, Piece]:
    """For each weight: which stretch of it this rank's `engine.masters()` hold, and where."""
    zero, rank = engine.engine.optimizer, engine.engine.global_rank
    pieces = {}
    weight: Any  # DeepSpeed gives parameters attributes of its own
    for index, (name, weight) in enumerate(learning_weights(engine).items()):
        if engine.stage == 0:
            pieces[name] = Piece(0, weight.numel(), index, 0)
        elif engine.stage == 3:
            flat, offset, count = zero.grad_position[zero.get_param_id(weight)]
            start = rank * count  # every rank's part has this length; elements past the weight's end are padding
            pieces[name] = Piece(start, max(0, min(count, weight.ds_numel - start)), flat, offset)
        elif (mapping := weight._hp_mapping) is not None:  # None: this rank holds no element of this weight
            master, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
            pieces[name] = Piece(whole.start, whole.numel, mapping.param_group_index, master.start)
    return pieces


def begin_setting_weights(engine: Engine) -> None:
    """Prepare an engine for new masters; `update_working_weights` ends this.

    At stage 3 every rank holds small weights whole. They are divided now like the other weights, so that each rank can
    set its own stretch.
    """
    if engine.stage == 3:
        engine.engine.optimizer.checkpoint_event_prologue()


def clear_moments(engine: Engine) -> None:
    """Drop Adam's moments, and at stages 1 and 2 DeepSpeed's views of them, which it then makes anew."""
    engine.engine.basic_optimizer.state.clear()
    if engine.stage in (1, 2):
        engine.engine.optimizer._hp_optimizer_states_linked = False


@torch.no_grad()
def update_working_weights(engine: Engine) -> None:
    """Make the working weights from the masters, as DeepSpeed does after a step."""
    zero = engine.engine.optimizer
    if engine.plain:
        return
    if engine.stage == 0:
        for weights, masters in zip(zero.fp16_groups, zero.fp32_groups, strict=True):
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)
    elif engine.stage < 3:
        zero.update_lp_params()
    else:
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.checkpoint_event_epilogue()

"""The only place that uses parts of DeepSpeed which are not public; measured with DeepSpeed 0.19.8.

DeepSpeed has no public way to read an optimizer's masters, to set an engine's state from outside, or to keep its CPU
backend from compiling an extension. `engine` is a `deepspeed.DeepSpeedEngine`, `stage` its ZeRO stage.
tests/trainer/engine/test_deepspeed_private.py fails where a later version changes what is used here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.engine.torch_private import copy_all


class Place(NamedTuple):
    """Elements [start, start + length) of a flattened weight lie in master number `flat`, from `offset` on."""

    start: int
    length: int
    flat: int
    offset: int


def switch_shared_memory_off() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce where it finds a compiler; gloo needs none."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def forget_nvml() -> None:
    """Let DeepSpeed ask torch for a GPU's free memory, and not the driver's library.

    For the library it translates CUDA_VISIBLE_DEVICES, and fails where that lists UUIDs.
    """
    from deepspeed.accelerator import get_accelerator

    module: Any = sys.modules[type(get_accelerator()).__module__]
    module.pynvml = None


def scaler(engine: Any, stage: int) -> Any:
    """What holds fp16's loss scale, as `cur_scale`."""
    return engine.optimizer.loss_scale_config if stage == 0 else engine.optimizer.loss_scaler


def never_give_up(engine: Any, stage: int, lowest_scale: float) -> None:
    """Let fp16's loss scale fall to `lowest_scale`, and do not end the run there."""
    holder = scaler(engine, stage)
    holder.min_loss_scale = holder.min_scale = lowest_scale  # the name at ZeRO 0, and at the other stages
    holder.raise_error_at_min_scale = False


def clear_moments(engine: Any, stage: int) -> dict[Tensor, dict[str, Tensor]]:
    """Empty the state of the inner optimizer (Adam's moments and counts); the state, to be filled anew."""
    engine.basic_optimizer.state.clear()
    if stage in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False  # DeepSpeed must make its views of the moments anew
    state: dict[Tensor, dict[str, Tensor]] = engine.basic_optimizer.state
    return state


def masters(engine: Any, stage: int) -> list[Tensor]:
    """The fp32 masters that this rank holds where DeepSpeed keeps them apart from the weights (not in fp32 at ZeRO 0).

    At ZeRO 0 these are whole tensors; else flat shards.
    """
    optimizer = engine.optimizer
    if stage == 0:
        return [master for group in optimizer.fp32_groups for master in group]
    return list(optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups)


def weights_and_masters(engine: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each 16-bit weight at ZeRO 0 with its master, which DeepSpeed keeps in lists parallel to the weights."""
    for weights, group in zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True):
        yield from zip(weights, group, strict=True)


def places(engine: Any, stage: int, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Place]]:
    """Name -> the part of the weight that this rank's masters hold at ZeRO 1 to 3, and where.

    Args:
        weights: the names and parameters that learn.
    """
    optimizer, rank = engine.optimizer, engine.global_rank
    for name, weight in weights:
        if stage == 3:
            flat, offset, count = optimizer.grad_position[optimizer.get_param_id(weight)]
            start = rank * count  # every rank's part has this length; what lies past the weight's end is padding
            yield name, Place(start, max(0, min(count, weight.ds_numel - start)), flat, offset)
        elif (mapping := weight._hp_mapping) is not None:  # None: no element of this weight is on this rank
            master, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield name, Place(whole.start, whole.numel, mapping.param_group_index, master.start)


def whole_shape(weight: nn.Parameter) -> tuple[int, ...]:
    """Shape of a weight, of which ZeRO 3 keeps only a shard."""
    return tuple(getattr(weight, "ds_shape", weight.shape))


def begin_setting_masters(engine: Any, stage: int) -> None:
    """Prepare an engine for new masters; `update_working_weights` ends this.

    At ZeRO 3 every rank holds small weights whole. They are divided now like the other weights, so that each rank can
    set its own stretch.
    """
    if stage == 3:
        engine.optimizer.checkpoint_event_prologue()


@torch.no_grad()
def update_working_weights(engine: Any, stage: int) -> None:
    """Make the working weights from the masters, as DeepSpeed does after a step (not in fp32 at ZeRO 0)."""
    optimizer = engine.optimizer
    if stage == 0:
        for weights, group in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            copy_all(weights, group)
    elif stage < 3:
        optimizer.update_lp_params()
    else:
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.checkpoint_event_epilogue()


def set_counters(engine: Any, counters: dict[str, int]) -> None:
    """DeepSpeed's own counts of steps and samples."""
    for name, count in counters.items():
        setattr(engine, name, count)

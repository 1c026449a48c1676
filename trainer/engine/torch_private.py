"""The only place in trainer/ and model/ that uses parts of PyTorch which are not public; measured with torch 2.13.

tests/trainer/engine/test_torch_private.py fails where a later version changes what is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import distributed_c10d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "CPU_ATTENTION",
    "CPU_ATTENTION_BACKWARD",
    "FakeTensorMode",
    "TorchDispatchMode",
    "allow_graphs",
    "copy_all",
    "move_towards",
    "norms",
    "set_default_timeout",
    "skip_step_where",
    "tree_leaves",
]

# The operators that scaled_dot_product_attention calls on processors.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def set_default_timeout(timeout: timedelta) -> None:
    """Set after how long a process group that is made without a timeout gives a missing rank up.

    Groups that libraries make, DeepSpeed's among them, do not take over the first group's timeout but this default,
    which is half an hour for gloo. There is no public way to change it.
    """
    distributed_c10d.default_pg_timeout = timeout
    distributed_c10d.default_pg_nccl_timeout = timeout


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of each tensor, [number of tensors], in few kernels however many tensors there are."""
    return torch.stack(torch._foreach_norm(list(tensors)))


def move_towards(averages: Sequence[Tensor], values: Sequence[Tensor], share: float) -> None:
    """Move each average by `share` of its distance to its value, in place, in few kernels."""
    torch._foreach_lerp_(list(averages), list(values), share)


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, in few kernels."""
    torch._foreach_copy_(list(targets), list(sources))


def allow_graphs(count: int) -> None:
    """Let torch.compile make up to `count` graphs of one function, where it makes 8 by default.

    `torch.compile(recompile_limit=...)` is public, but torch 2.11 does not have it.
    """
    from torch._dynamo import config as dynamo_config  # late, because this imports a compiler

    dynamo_config.recompile_limit = max(count, dynamo_config.recompile_limit)


def skip_step_where(optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
    """Let the next step of a fused Adam or AdamW change nothing where `skipped`, 0-dim on the device, is 1.

    Weights, moments and step count then stay as they are, and the host need not wait for the device. It is the
    attribute by which torch's GradScaler tells a fused optimizer of an overflow.
    """
    optimizer.found_inf = skipped  # type: ignore[attr-defined]

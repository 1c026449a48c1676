"""Activation recomputation: a transformer block that forgets its activations and computes them again going backward.

Recomputation belongs to the block, so that a compiler which is given the block sees it as well.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Mode = Literal["none", "full", "every", "selective"]


class TransformerBlock(nn.Module):
    """Base of the blocks of all transformers: what is compiled, recomputed, and gathered as a whole at ZeRO 3.

    Attributes:
        recompute: what the block computes again in the backward pass: nothing, all, or what costs little.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recompute: Literal["none", "all", "cheap"] = "none"

    def run(self, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """`function(*inputs)`, recomputed in the backward pass as `recompute` says; it draws no random numbers."""
        if self.recompute == "none" or not torch.is_grad_enabled():
            return function(*inputs)
        contexts: dict[str, Any] = {}
        if self.recompute == "cheap":
            contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
        # A block draws no random numbers, so there is no state of a generator to keep.
        recomputed: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **contexts)
        return recomputed


def set_recomputation(stacks: Iterable[nn.ModuleList], mode: Mode, every: int = 1) -> None:
    """Trade time for memory: recompute blocks in the backward pass (non-reentrant, gradients unchanged).

    Args:
        stacks: of `TransformerBlock`s.
        mode: "none", "full" (all blocks), "every" (blocks 0, every, 2*every ... of each stack), or "selective" (all
            blocks, but what matrix products and attention made is kept).
        every: only for "every"; 1 is "full".
    Raises:
        ValueError: unknown mode or every < 1.
    """
    if mode not in ("none", "full", "every", "selective"):
        raise ValueError(f"activation_checkpointing={mode!r} is not one of none, full, every, selective")
    if mode == "every" and every < 1:
        raise ValueError(f"activation checkpointing every {every} blocks is not possible; use 1 or more")
    kind: Literal["all", "cheap"] = "cheap" if mode == "selective" else "all"
    step = {"none": 0, "every": every}.get(mode, 1)
    for stack in stacks:
        for index, block in enumerate(stack):
            assert isinstance(block, TransformerBlock)
            block.recompute = kind if step and index % step == 0 else "none"


def _keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """The policy of selective recomputation: keep what matrix products and attention made, recompute what is cheap.

    A product that narrows (the last of the MLP) ends a block: nothing in its backward pass needs the result.
    """
    kind = operator.overloadpacket
    attention = "scaled_dot_product" in str(kind) or "_attention_forward" in str(kind)
    product = kind in (torch.ops.aten.mm, torch.ops.aten.addmm) and args[-1].shape[1] >= args[-1].shape[0]
    return CheckpointPolicy.MUST_SAVE if attention or product else CheckpointPolicy.PREFER_RECOMPUTE

"""Parts of a training that torch.compile translates, each in the place where nothing that must stay outside is inside.

A module is compiled by its `forward`, so that the hooks which DeepSpeed hangs on it stay outside: at ZeRO 3 they gather
a block's weights before it and scatter them after it. Therefore it is done before DeepSpeed sees the module.
"""

from __future__ import annotations

import torch
from torch import nn

from model.recompute import TransformerBlock
from trainer.engine.torch_private import allow_graphs

BACKEND = "inductor"
# A graph for each of: clips of another number of frames; the first block, which knows the time; blocks that recompute;
# blocks whose input, or weights, need no gradient. All blocks are the same code, and share the graphs.
MOST_GRAPHS = 64


def compile_blocks(module: nn.Module) -> None:
    """Let torch.compile translate every transformer block inside a module when it first runs."""
    for part in module.modules():
        if isinstance(part, TransformerBlock):
            compile_forward(part)


def compile_forward(module: nn.Module) -> None:
    """Let torch.compile translate a module's `forward` as one graph when it first runs.

    Where this is impossible the first run raises torch's error; nothing falls back to eager silently.
    """
    allow_graphs(MOST_GRAPHS)
    module.forward = torch.compile(module.forward, fullgraph=True, dynamic=False, backend=BACKEND)

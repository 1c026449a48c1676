"""Parts of a training that torch.compile translates, each in the place where nothing that must stay outside is inside.

A module is compiled by its `forward`, so that the hooks which DeepSpeed hangs on it stay outside: at ZeRO 3 they gather
a block's weights before it and scatter them after it. Therefore it is done before DeepSpeed sees the module.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from data_pipeline.store.private_folder import private_folder
from model.recompute import TransformerBlock
from trainer.engine.torch_private import allow_graphs

BACKEND = "inductor"
CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Names where torch keeps what it compiles, and loads code from. Another user can take its own place in /tmp first."""
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

    Where this is impossible the first run raises torch's error; nothing falls back to eager silently. What torch keeps
    for later runs lies in a folder of this user, unless TORCHINDUCTOR_CACHE_DIR names another one.
    """
    if CACHE not in os.environ:  # torch sets it, too, once its compiler is imported
        os.environ[CACHE] = str(private_folder("inductor"))
    allow_graphs(MOST_GRAPHS)
    module.forward = torch.compile(module.forward, fullgraph=True, dynamic=False, backend=BACKEND)

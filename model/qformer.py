"""Temporal Q-Former: learned queries gather what a patch position does over time.

Paper section 3.2.1, after BLIP-2 (Li et al. 2023, 3.1). B batch, S patch positions, T frames, Q queries, d their
width, C width of the encoder. Queries are kept as [B, Q, S, d], the layout of frames, and share their attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend_over_time
from model.initial import normal_

QUERY_NORM_EPS = 1e-12
QUERY_INIT_STD = 0.02
CROSS_EVERY = 2  # layers 0, 2, 4 ... look at the frames


class QueryAttention(nn.Module):
    """Attention of the queries over `source`, residual, norm."""

    def __init__(self, width: int, source_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=QUERY_NORM_EPS)

    def forward(self, queries: Tensor, source: Tensor) -> Tensor:
        """Args: queries [B, Q, S, d], source [B, T, S, *]. Returns [B, Q, S, d]."""
        dropout = self.dropout if self.training else 0.0
        mixed = attend_over_time(self.query(queries), self.key(source), self.value(source), self.heads, dropout=dropout)
        return self.norm(queries + F.dropout(self.out(mixed), dropout))


class QueryLayer(nn.Module):
    """Self-attention among the queries, every second time cross-attention to the frames, MLP."""

    def __init__(self, width: int, source_width: int, heads: int, hidden: int, cross: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.among_queries = QueryAttention(width, width, heads, dropout)
        self.to_frames = QueryAttention(width, source_width, heads, dropout) if cross else None
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=QUERY_NORM_EPS)

    def forward(self, queries: Tensor, frames: Tensor) -> Tensor:
        """Args: queries [B, Q, S, d], [1, Q, 1, d] into the first layer; frames [B, T, S, C]. Returns [B, Q, S, d]."""
        queries = self.among_queries(queries, queries)
        if self.to_frames is not None:
            batch, _, positions, _ = frames.shape
            queries = self.to_frames(queries.expand(batch, -1, positions, -1).contiguous(), frames)
        change = self.down(F.gelu(self.up(queries)))
        return self.norm(queries + F.dropout(change, self.dropout, self.training))


class QFormer(nn.Module):
    """[B, T, S, C] -> [B, Q, S, d].

    Args:
        queries, width: Q and d.
        source_width: C.
        heads, layers, hidden: attention heads, layers, width inside a layer's MLP.
        dropout: probability used while training, on attention and on what each layer adds.
    """

    def __init__(
        self, *, queries: int, width: int, source_width: int, heads: int, layers: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.queries = nn.Parameter(torch.empty(queries, width))
        normal_(self.queries)
        self.norm = nn.LayerNorm(width, eps=QUERY_NORM_EPS)
        self.layers = nn.ModuleList(
            QueryLayer(width, source_width, heads, hidden, index % CROSS_EVERY == 0, dropout) for index in range(layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                normal_(module.weight, std=QUERY_INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, frames_BTSC: Tensor) -> Tensor:
        # Until the first look at the frames every position holds the same queries: they are computed once and expanded.
        queries = self.norm(self.queries)[None, :, None]
        if self.dropout and self.training:
            batch, _, positions, _ = frames_BTSC.shape
            queries = F.dropout(queries.expand(batch, -1, positions, -1).contiguous(), self.dropout)
        for layer in self.layers:
            queries = layer(queries, frames_BTSC)
        return queries

"""The parts of a DiT: attention, the block, the condition and the time.

B batch, N tokens, C width, L tokens of the condition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.dit_config import DiTConfig
from model.initial import normal_
from model.precision import ExactBuffers
from model.recompute import TransformerBlock
from model.transformer import NORM_EPS, QkvLinear, RowLinear

TIME_WIDTH = 256
"""Sines and cosines of the time, as in the code of DiT."""
LONGEST_PERIOD = 10_000.0


class ClassCondition(NamedTuple):
    """numbers: int64 [B], of the classes; -1 where the condition is dropped."""

    numbers: Tensor

    def dropped(self, where: Tensor) -> ClassCondition:
        """Without the condition of the clips `where` (bool [B]) says."""
        return ClassCondition(torch.where(where, -1, self.numbers))


class TextCondition(NamedTuple):
    """tokens: [B, L, text width]; mask: bool [B, L], True for real tokens; given: bool [B], False where dropped."""

    tokens: Tensor
    mask: Tensor
    given: Tensor

    def dropped(self, where: Tensor) -> TextCondition:
        """Without the condition of the clips `where` (bool [B]) says."""
        return self._replace(given=self.given & ~where)


Condition = ClassCondition | TextCondition | None


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then `x * (1 + scale) + shift`; x [B, N, C], shift and scale [B, C]."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1.0 + scale[:, None]) + shift[:, None]


class HeadNorms(nn.Module):
    """RMS norms of queries and keys [B, heads, N, C / heads], one weight for each channel of a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.RMSNorm(width, eps=NORM_EPS)
        self.key = nn.RMSNorm(width, eps=NORM_EPS)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query(q), self.key(k)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, norms: nn.Module | None, mask: Tensor | None = None) -> Tensor:
    """Attention of q [B, N, C] to k and v [B, L, C], of which `mask` [B, L] says the ones that count. -> [B, N, C]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if norms is not None:
        q, k = norms(q, k)
    mixed = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
    return mixed.transpose(1, 2).flatten(-2)


class SelfAttention(nn.Module):
    """Multi-head attention among all tokens of both latents."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = QkvLinear(config.width, together=True)
        self.norms = HeadNorms(config.width // config.heads) if config.qk_norm else None
        self.out = RowLinear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        q, k, v = self.qkv(x)
        return self.out(attend(q, k, v, self.heads, self.norms))


class CrossAttention(nn.Module):
    """Multi-head attention to the condition. With one token, as a class is, the queries decide nothing."""

    def __init__(self, config: DiTConfig, context_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = RowLinear(config.width, config.width)
        self.key_value = RowLinear(context_width, 2 * config.width)
        self.norms = HeadNorms(config.width // config.heads) if config.qk_norm else None
        self.out = RowLinear(config.width, config.width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, N, C], context [B, L, context width], mask bool [B, L] or None. -> [B, N, C]."""
        k, v = self.key_value(context).chunk(2, dim=-1)
        return self.out(attend(self.query(x), k, v, self.heads, self.norms, mask))


class DiTBlock(TransformerBlock):
    """Self-attention, cross-attention to the condition, MLP; shift, scale and gate come from the time (adaLN-zero).

    The gates and the last layer of the cross-attention are 0 at first, so that a new block changes nothing. The
    cross-attention stands between the two others and has no gate, as in PixArt (Chen et al. 2023).
    """

    def __init__(self, config: DiTConfig, context_width: int) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config, context_width) if context_width else None
        self.up = RowLinear(config.width, hidden)
        self.down = RowLinear(hidden, config.width)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """x [B, N, C], time [B, C], context [B, L, context width] or None, mask bool [B, L] or None. -> [B, N, C]."""
        return self.run(self._forward, x, time, context, mask)

    def _forward(self, x: Tensor, time: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(time).chunk(6, dim=-1)
        x = x + gate[:, None] * self.attention(modulate(x, shift, scale))
        if self.cross is not None:
            assert context is not None
            x = x + self.cross(F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), context, mask)
        hidden = F.gelu(self.up(modulate(x, mlp_shift, mlp_scale)), approximate="tanh")
        return x + mlp_gate[:, None] * self.down(hidden)


class LastLayer(nn.Module):
    """Modulated norm of all tokens, then one linear layer for each latent, which are 0 at first."""

    def __init__(self, width: int, values: tuple[int, int]) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.structure, self.dynamics = (RowLinear(width, count) for count in values)

    def forward(self, x: Tensor, time: Tensor, structure_tokens: int) -> tuple[Tensor, Tensor]:
        """[B, N, C] -> patch vectors of the first `structure_tokens` tokens, and of the others."""
        x = modulate(x, *self.modulation(time).chunk(2, dim=-1))
        return self.structure(x[:, :structure_tokens]), self.dynamics(x[:, structure_tokens:])


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time in [0, 1000], and an MLP: [B] -> [B, C]; a SiLU stands at its end."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(TIME_WIDTH, width)
        self.down = nn.Linear(width, width)

    def forward(self, times: Tensor) -> Tensor:
        """Args: times: floats [B]. The waves are fp64, because the phase of a wave at 1000 is inexact in fp32."""
        waves = time_waves(times.double()).to(self.up.weight.dtype)
        return F.silu(self.down(F.silu(self.up(waves))))


def time_waves(times: Tensor) -> Tensor:
    """Cosine half and sine half of the times, [B, TIME_WIDTH], as in the code of DiT."""
    half = TIME_WIDTH // 2
    numbers = torch.arange(half, dtype=times.dtype, device=times.device)
    angles = times[:, None] * torch.exp(-math.log(LONGEST_PERIOD) * numbers / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ClassTokens(nn.Module):
    """A vector for each class and, in the last row, one for no class: numbers [B] -> [B, 1, class width]."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(classes + 1, width))
        normal_(self.table, std=0.02)

    def forward(self, condition: ClassCondition) -> tuple[Tensor, None]:
        numbers = condition.numbers
        return F.embedding(torch.where(numbers < 0, len(self.table) - 1, numbers), self.table)[:, None], None


class TextTokens(ExactBuffers):
    """Token embeddings as they are; where the condition is dropped those of the empty caption stand in their place.

    So a guided sample moves away from what the network says of the empty caption, as with Imagen and Stable Diffusion.

    Args:
        empty: embeddings of the empty caption, [E, text width]; they are a buffer, which is stored with the weights.
    """

    empty: Tensor

    def __init__(self, empty: Tensor) -> None:
        super().__init__()
        self.register_buffer("empty", empty.clone())

    def forward(self, condition: TextCondition) -> tuple[Tensor, Tensor]:
        """-> tokens [B, M, text width], mask bool [B, M], with M the larger one of L and E."""
        length = max(condition.mask.shape[1], len(self.empty))
        tokens = F.pad(condition.tokens.to(self.empty.dtype), (0, 0, 0, length - condition.tokens.shape[1]))
        mask = F.pad(condition.mask, (0, length - condition.mask.shape[1]))
        empty = F.pad(self.empty, (0, 0, 0, length - len(self.empty)))
        empty_mask = torch.arange(length, device=mask.device) < len(self.empty)
        given = condition.given[:, None]
        return torch.where(given[:, :, None], tokens, empty), torch.where(given, mask, empty_mask)

"""The spatial-temporal transformer that both encodes patches and decodes them.

Paper section 3.1. Shapes: B batch, T frames, S patches of a frame, C width; activations stay [B, T, S, C] throughout.
Attention along either axis reads that layout through strides, so nothing is ever transposed in memory.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend_over_time, attend_within_frames
from model.initial import normal_over_
from model.patches import grid_positions, sincos_positions
from model.precision import FixedTables
from model.recompute import TransformerBlock

NORM_EPS = 1e-6
MLP_RATIO = 4


def linear_rows(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear` of x [..., in], put to it as rows [N, in].

    DeepSpeed 0.19.8 replaces `F.linear` at ZeRO 3, for the whole process. For rows, the replacement makes product and
    bias in one operator. For anything else it adds the bias in place to the product, to which recomputation that has
    kept the product adds it again; PyTorch does not notice, because a reshaped product counts its changes anew.
    """
    return F.linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


class GatedLinear(nn.Linear):
    """`gate * linear(x)` with the gate folded into the weights: one pass over the parameters, none over the tokens."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """Args: x [..., in]; gate [out], one factor for each output feature. Returns [..., out]."""
        return linear_rows(x, self.weight * gate[:, None], self.bias * gate)


class RowLinear(nn.Linear):
    """`nn.Linear` by `linear_rows`."""

    def forward(self, x: Tensor) -> Tensor:
        """Args: x [..., in]. Returns [..., out]."""
        return linear_rows(x, self.weight, self.bias)


class QkvLinear(nn.Linear):
    """Queries, keys and values from one weight [3C, C].

    Args:
        width: C.
        together: make them by one product, as parts of one tensor [..., 3C]; otherwise each lies in memory of its own.
            One product fills a GPU better than three of a third, and its gradient at x needs no sum.
    """

    def __init__(self, width: int, together: bool) -> None:
        super().__init__(width, 3 * width)
        self.together = together

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        if self.together:
            q, k, v = linear_rows(x, self.weight, self.bias).chunk(3, dim=-1)
        else:
            parts = zip(self.weight.chunk(3), self.bias.chunk(3), strict=True)
            q, k, v = (linear_rows(x, weight, bias) for weight, bias in parts)
        return q, k, v


class Attention(nn.Module):
    """Multi-head self-attention along one axis.

    Args:
        width, heads: C, and the number of heads.
        attend: `attend_within_frames` or `attend_over_time`. The latter makes one axis of patches and heads, which a
            part of a wider tensor does not allow without a copy, so its queries, keys and values are made apart.
    """

    def __init__(self, width: int, heads: int, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.heads = heads
        self.attend = attend
        self.qkv = QkvLinear(width, together=attend is attend_within_frames)
        self.out = GatedLinear(width, width)

    def forward(self, x_BTSC: Tensor, gate: Tensor) -> Tensor:
        """Returns gate * attention(x), [B, T, S, C]."""
        q, k, v = self.qkv(x_BTSC)
        return self.out(self.attend(q, k, v, self.heads), gate)


class Mlp(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = RowLinear(width, hidden)
        self.down = GatedLinear(hidden, width)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Returns gate * mlp(x), same shape as x."""
        return self.down(F.gelu(self.up(x), approximate="tanh"), gate)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`norm(x) * (1 + scale) + shift`, as the affine part of one fused layer norm."""
    return F.layer_norm(x, x.shape[-1:], 1.0 + scale, shift, NORM_EPS)


class SpaceTimeBlock(TransformerBlock):
    """Spatial attention, temporal attention, MLP, steered by one learned table of six rows.

    Rows: shift, scale, gate of attention, then of the MLP. As in the released model the temporal attention reads the
    stream without a norm and shares the spatial attention's gate.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(6, width))
        normal_over_(self.modulation, width**0.5)
        self.spatial = Attention(width, heads, attend_within_frames)
        self.temporal = Attention(width, heads, partial(attend_over_time, causal=causal))
        self.mlp = Mlp(width, MLP_RATIO * width)

    def forward(self, x_BTSC: Tensor, time_positions: Tensor | None) -> Tensor:
        """One block, which recomputes in the backward pass what `recompute` says.

        Args:
            x_BTSC: [B, T, S, C].
            time_positions: [T, 1, C], seen by the temporal attention only, or None.
        """
        return self.run(self._forward, x_BTSC, time_positions)

    def _forward(self, x_BTSC: Tensor, time_positions: Tensor | None) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation.unbind(0)
        x = x_BTSC + self.spatial(modulated_norm(x_BTSC, shift, scale), gate)
        timed = x if time_positions is None else x + time_positions
        x = x + self.temporal(timed, gate)
        return x + self.mlp(modulated_norm(x, mlp_shift, mlp_scale), mlp_gate)


class SpaceTimeTransformer(FixedTables):
    """Fixed sine-cosine positions and a stack of blocks: [B, T, S, C] -> [B, T, S, C].

    Args:
        width, heads, depth: C, attention heads, number of blocks.
        frames, grid: the most frames T and the side of the square patch grid (S = grid**2).
        position_grid: side of the grid in whose coordinates the patch positions are given.
        causal: whether a frame may attend to later ones.
    """

    patch_positions: Tensor
    time_positions: Tensor

    def __init__(
        self, *, width: int, heads: int, depth: int, frames: int, grid: int, position_grid: int, causal: bool
    ) -> None:
        super().__init__()
        self.register_table("patch_positions", grid_positions(grid, width, position_grid))
        self.register_table("time_positions", sincos_positions(frames, width)[:, None])
        self.blocks = nn.ModuleList(SpaceTimeBlock(width, heads, causal) for _ in range(depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases; temporal attention starts as nothing (its output layer is zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            assert isinstance(block, SpaceTimeBlock)
            nn.init.zeros_(block.temporal.out.weight)

    def forward(self, x_BTSC: Tensor) -> Tensor:
        x = x_BTSC + self.patch_positions.to(x_BTSC.dtype)
        for index, block in enumerate(self.blocks):
            # The released model tells only its first temporal attention what time it is.
            time_positions = self.time_positions[: x.shape[1]].to(x.dtype) if index == 0 else None
            x = block(x, time_positions)
        return x

"""Attention along each axis against PyTorch's own multi-head module; patches against loops."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from model.attention import attend_over_time, attend_within_frames
from model.patches import grid_positions, patchify, sincos_positions, unpatchify
from model.qformer import QFormer
from model.transformer import Attention, GatedLinear, QkvLinear, modulated_norm
from tests.model.official_weights import position_buffers

pytestmark = pytest.mark.numeric


def reference(attention: Attention, width: int, heads: int) -> nn.MultiheadAttention:
    """torch.nn.MultiheadAttention with the same weights."""
    module = nn.MultiheadAttention(width, heads, batch_first=True)
    module.in_proj_weight = nn.Parameter(attention.qkv.weight.detach())
    module.in_proj_bias = nn.Parameter(attention.qkv.bias.detach())
    module.out_proj.weight = nn.Parameter(attention.out.weight.detach())
    module.out_proj.bias = nn.Parameter(attention.out.bias.detach())
    return module


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_along_both_axes(batch: int, causal: bool) -> None:
    torch.manual_seed(0)
    frames, patches, width, heads = 5, 7, 24, 3
    within = Attention(width, heads, attend_within_frames).double()
    over = Attention(width, heads, partial(attend_over_time, causal=causal)).double()
    over.load_state_dict(within.state_dict())
    module = reference(within, width, heads)
    x, gate = torch.randn(batch, frames, patches, width).double(), torch.randn(width).double()

    flat = x.reshape(batch * frames, patches, width)
    expected = module(flat, flat, flat, need_weights=False)[0].view_as(x) * gate
    torch.testing.assert_close(within(x, gate), expected, atol=1e-9, rtol=0)

    rows = x.transpose(1, 2).reshape(batch * patches, frames, width)
    mask = torch.ones(frames, frames, dtype=torch.bool).triu(1) if causal else None
    mixed = module(rows, rows, rows, attn_mask=mask, need_weights=False)[0]
    expected = mixed.view(batch, patches, frames, width).transpose(1, 2) * gate
    torch.testing.assert_close(over(x, gate), expected, atol=1e-9, rtol=0)


def test_attention_copies_nothing() -> None:
    """Queries, keys and values reach the kernel as views, and its result leaves as one."""
    x = torch.randn(2, 5, 7, 24)
    q, k, v = Attention(24, 3, attend_over_time).qkv(x)
    assert all(part.is_contiguous() for part in (q, k, v))
    assert attend_over_time(q, k, v, 3).is_contiguous()
    q, k, v = Attention(24, 3, attend_within_frames).qkv(x)
    assert len({part.untyped_storage().data_ptr() for part in (q, k, v)}) == 1
    assert attend_within_frames(q, k, v, 3).is_contiguous()  # it views them, and would raise where it had to copy


def test_one_product_for_queries_keys_and_values_is_three() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 24).double().requires_grad_()
    together, apart = QkvLinear(24, together=True).double(), QkvLinear(24, together=False).double()
    apart.load_state_dict(together.state_dict())
    nn.init.normal_(together.bias)
    apart.bias.data.copy_(together.bias)
    weights = torch.randn(3, 2, 3, 5, 24).double()
    found = []
    for linear in (together, apart):
        parts = torch.stack(linear(x))
        found.append([parts, *torch.autograd.grad((parts * weights).sum(), [x, linear.weight, linear.bias])])
    for one, three in zip(*found, strict=True):
        torch.testing.assert_close(one, three, atol=1e-9, rtol=0)


def test_gate_and_modulation_are_folded_exactly() -> None:
    torch.manual_seed(0)
    linear, x, gate = GatedLinear(6, 4).double(), torch.randn(5, 6).double(), torch.randn(4).double()
    plain = nn.functional.linear(x, linear.weight, linear.bias)
    torch.testing.assert_close(linear(x, gate), gate * plain)
    shift, scale = torch.randn(2, 6).double()
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(modulated_norm(x, shift, scale), normed * (1 + scale) + shift)


def test_patches_are_cut_in_reading_order() -> None:
    video = torch.arange(2 * 3 * 2 * 6 * 6, dtype=torch.float32).view(2, 3, 2, 6, 6)
    patches = patchify(video, 3)
    assert patches.shape == (2, 2, 4, 27)
    for (b, t, row, column), offset in {(0, 0, 0, 0): 0, (1, 1, 0, 1): 1, (0, 1, 1, 0): 2, (1, 0, 1, 1): 3}.items():
        block = video[b, :, t, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        assert patches[b, t, offset].tolist() == [
            block[c, y, x].item() for y in range(3) for x in range(3) for c in range(3)
        ]
    assert torch.equal(unpatchify(patches, 3), video)


def test_positions() -> None:
    expected = position_buffers(frames=5, grid=3, width=16)
    torch.testing.assert_close(grid_positions(3, 16)[None], expected["encoder.pos_embed"])
    torch.testing.assert_close(sincos_positions(5, 16)[None], expected["encoder.pos_embed_temporal"])


def qformer(dropout: float = 0.0) -> QFormer:
    torch.manual_seed(0)
    former = QFormer(queries=3, width=16, source_width=20, heads=2, layers=3, hidden=24, dropout=dropout)
    for parameter in former.parameters():
        nn.init.normal_(parameter, std=0.5)
    return former


def test_qformer_treats_positions_and_clips_apart() -> None:
    """One clip and position alone gives what it gives among others, whatever the batch."""
    frames: Tensor = torch.randn(2, 4, 5, 20).double()
    together = qformer().double()(frames)
    alone = qformer().double()(frames[1:, :, 3:4])
    assert together.shape == (2, 3, 5, 16)
    torch.testing.assert_close(together[1:, :, 3:4], alone, atol=1e-9, rtol=0)


def test_qformer_dropout_only_while_training() -> None:
    former, frames = qformer(dropout=0.3), torch.randn(2, 4, 5, 20)
    assert not torch.equal(former(frames), former(frames))
    former.eval()
    assert torch.equal(former(frames), former(frames))
    torch.testing.assert_close(former(frames), qformer()(frames))

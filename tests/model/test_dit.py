"""The DiT: what reaches what, parameter counts, the directory on disk."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.dit import DiT
from model.dit_config import (
    PAPER,
    Conditioning,
    DiTConfig,
    LatentSpace,
    NoiseSchedule,
    Objective,
    PatchGrid,
    ProcessConfig,
)
from model.dit_parts import ClassCondition, TextCondition, time_waves
from model.latent_statistics import Normaliser
from model.provenance import Provenance, Weights
from model.pseudo_dit import HEADS, HIDDEN, WIDTH, PseudoDiT
from tests.model.tiny_dit import SMALL, SPACE, STATISTICS, TIMES, TINY, conditioned, latents, lively

BASE = LatentSpace(structure_shape=(4, 16, 7, 7), dynamics_shape=(8, 16, 14), classes=tuple(map(str, range(101))))

# ---- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "class", "text"])
def test_a_new_network_says_nothing_and_its_blocks_change_nothing(kind: str) -> None:
    config, condition = conditioned(kind)
    torch.manual_seed(0)
    model = DiT(config, SPACE).double()
    assert all(not part.any() for part in model(*latents(), TIMES, condition))
    x, time = torch.randn(2, model.tokens, 24).double(), torch.randn(2, 24).double()
    context, mask = model.context(condition) if model.context is not None else (None, None)
    for block in model.blocks:
        assert torch.equal(block(x, time, context, mask), x)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kind", ["none", "class", "text"])
def test_clips_do_not_see_each_other_and_tokens_all_do(kind: str, qk_norm: bool) -> None:
    config, condition = conditioned(kind)
    model = lively(replace(config, qk_norm=qk_norm))
    given = latents()
    both = model(*given, TIMES, condition)
    one = None if condition is None else type(condition)(*(part[1:] for part in condition))
    alone = model(given.structure[1:], given.dynamics[1:], TIMES[1:], one)
    for part, other in zip(both, alone, strict=True):
        torch.testing.assert_close(part[1:], other, rtol=1e-9, atol=1e-9)
    assert [part.shape for part in both] == [part.shape for part in given]
    structure = given.structure[:1].clone().requires_grad_()
    one = None if condition is None else type(condition)(*(part[:1] for part in condition))
    said = model(structure, given.dynamics[:1], TIMES[:1], one)
    for place in ((0, 0, 0), (1, 3, 5)):  # the first number and the last one of the dynamics
        (slope,) = torch.autograd.grad(said.dynamics[0][place], structure, retain_graph=True)
        assert bool((slope != 0).all())


def test_the_block_is_its_formula() -> None:
    """One block against the formula written out with matrices, head by head and token by token."""
    config, condition = conditioned("text")
    model = lively(replace(config, qk_norm=True, depth=1))
    (block,) = model.blocks
    x, time = torch.randn(2, model.tokens, 24, dtype=torch.float64), torch.randn(2, 24, dtype=torch.float64)
    assert isinstance(condition, TextCondition)
    found = block(x, time, condition.tokens, condition.mask)

    def norm(v: Tensor) -> Tensor:
        return (v - v.mean()) / (v.var(correction=0) + 1e-6).sqrt()

    def rms(v: Tensor, weight: Tensor) -> Tensor:
        return weight * v / (v.square().mean() + 1e-6).sqrt()

    def heads_of(q: Tensor, keys: Tensor, values: Tensor, norms: Any) -> Tensor:
        parts = []
        for head in range(4):
            cut = slice(6 * head, 6 * head + 6)
            query = rms(q[cut], norms.query.weight)
            scores = torch.stack([query @ rms(key[cut], norms.key.weight) for key in keys]) / math.sqrt(6)
            parts.append(scores.softmax(0) @ values[:, cut])
        return torch.cat(parts)

    for clip in range(2):
        shift, scale, gate, shift2, scale2, gate2 = (
            block.modulation.weight @ time[clip] + block.modulation.bias
        ).reshape(6, 24)
        normed = torch.stack([norm(token) * (1 + scale) + shift for token in x[clip]])
        q, k, v = (normed @ block.attention.qkv.weight.T + block.attention.qkv.bias).reshape(-1, 3, 24).unbind(1)
        context = condition.tokens[clip][condition.mask[clip]]
        keys, values = (context @ block.cross.key_value.weight.T + block.cross.key_value.bias).split(24, dim=1)
        for token in range(model.tokens):
            h = heads_of(q[token], k, v, block.attention.norms)
            y = x[clip, token] + gate * (block.attention.out.weight @ h + block.attention.out.bias)
            query = block.cross.query.weight @ norm(y) + block.cross.query.bias
            h = heads_of(query, keys, values, block.cross.norms)
            y = y + block.cross.out.weight @ h + block.cross.out.bias
            hidden = block.up.weight @ (norm(y) * (1 + scale2) + shift2) + block.up.bias
            gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
            y = y + gate2 * (block.down.weight @ gelu + block.down.bias)
            torch.testing.assert_close(found[clip, token], y, rtol=1e-9, atol=1e-9)


def test_the_time_is_waves_of_the_periods_of_dit() -> None:
    waves = time_waves(torch.tensor([750.0], dtype=torch.float64))
    for k in (0, 1, 64, 127):
        angle = 750.0 / 10_000 ** (k / 128)
        assert waves[0, k].item() == pytest.approx(math.cos(angle), abs=1e-9)
        assert waves[0, 128 + k].item() == pytest.approx(math.sin(angle), abs=1e-9)


def test_a_dropped_class_is_the_null_vector_whatever_it_was() -> None:
    config, condition = conditioned("class")
    model = lively(config)
    assert isinstance(condition, ClassCondition)
    tokens = model.context(condition.dropped(torch.tensor([False, True])))[0][:, 0]
    assert torch.equal(tokens, model.context.table[[1, 2]])
    said = model(*latents(), TIMES, condition)
    other = model(*latents(), TIMES, ClassCondition(torch.tensor([0, 0])))
    assert not torch.allclose(said.structure[0], other.structure[0])
    assert torch.equal(said.structure[1], other.structure[1])


def test_a_dropped_text_leaves_nothing_of_it_and_masked_tokens_say_nothing() -> None:
    config, condition = conditioned("text")
    model = lively(config)
    assert isinstance(condition, TextCondition)
    said = model(*latents(), TIMES, condition)
    scrambled = condition.tokens.clone()
    scrambled[0, 2] = 100.0  # masked
    for part, other in zip(said, model(*latents(), TIMES, condition._replace(tokens=scrambled)), strict=True):
        assert torch.equal(part, other)
    nothing = condition.dropped(torch.tensor([True, True]))
    scrambled = nothing._replace(tokens=100 * condition.tokens, mask=torch.zeros(2, 3, dtype=torch.bool))
    for part, other in zip(model(*latents(), TIMES, nothing), model(*latents(), TIMES, scrambled), strict=True):
        assert torch.equal(part, other)
        assert bool(part.isfinite().all())


@pytest.mark.parametrize("tokens", [1, 2, 4], ids=["shorter", "as long", "longer"])
def test_a_dropped_text_is_the_empty_caption(tokens: int) -> None:
    config, _ = conditioned("text")
    empty = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    model = lively(config, empty_caption=empty)
    some, mask = torch.randn(2, tokens, 5, dtype=torch.float64), torch.ones(2, tokens, dtype=torch.bool)
    dropped = TextCondition(some, mask, torch.tensor([False, True]))
    given = TextCondition(
        empty.double().expand(2, 2, 5), torch.ones(2, 2, dtype=torch.bool), torch.tensor([True, True])
    )
    found, wanted = model(*latents(), TIMES, dropped), model(*latents(), TIMES, given)
    other = model(*latents(), TIMES, dropped._replace(given=torch.tensor([True, True])))
    for part, its, not_dropped in zip(found, wanted, other, strict=True):
        torch.testing.assert_close(part[0], its[0], rtol=1e-9, atol=1e-9)
        assert torch.equal(part[1], not_dropped[1])
        assert not torch.allclose(part[0], not_dropped[0])


def test_the_empty_caption_is_saved_and_stays_exact_in_a_network_of_16_bits(tmp_path: Path) -> None:
    config, _ = conditioned("text")
    empty = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    model = DiT(config, SPACE, statistics=STATISTICS, empty_caption=empty).bfloat16()
    assert torch.equal(model.context.get_buffer("empty"), empty)
    DiT(config, SPACE, statistics=STATISTICS, empty_caption=empty).save_pretrained(tmp_path)
    assert torch.equal(DiT.from_pretrained(tmp_path).context.get_buffer("empty"), empty)
    with pytest.raises(ValueError, match=r"the empty caption has the shape \[3, 5\], and not \[2, 5\]"):
        DiT(config, SPACE, empty_caption=torch.zeros(3, 5))


@pytest.mark.parametrize("mode", ["full", "every", "selective"])
def test_recomputation_leaves_the_gradients(mode: Any) -> None:
    config, condition = conditioned("text")
    model = lively(replace(config, qk_norm=True))
    gradients = []
    for recompute in ("none", mode):
        model.set_activation_checkpointing(recompute)
        model.zero_grad()
        sum(part.square().sum() for part in model(*latents(), TIMES, condition)).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_another_shape_or_another_condition_is_refused() -> None:
    model = lively(TINY)
    structure, dynamics = latents()
    with pytest.raises(ValueError, match=r"dynamics has shape \[2, 2, 4, 5\], but this model needs \[B, 2, 4, 6\]"):
        model(structure, dynamics[..., :5], TIMES)
    with pytest.raises(ValueError, match=r"dit\.condition=none needs a NoneType, not ClassCondition"):
        model(structure, dynamics, TIMES, ClassCondition(torch.tensor([0, 0])))
    with pytest.raises(ValueError, match=r"dit\.condition=class needs labels"):
        DiT(replace(TINY, condition=Conditioning.class_), replace(SPACE, classes=()))
    with pytest.raises(ValueError, match="class 'swim' is not one of the model's: run, jump"):
        model.class_numbers(["run", "swim"])


# ---- how large it is ------------------------------------------------------------------------------------------------


def closed_form(config: DiTConfig, space: LatentSpace) -> int:
    """Parameters, counted from the description of the network and not from its modules."""
    c, m, d = config.width, config.mlp_ratio * config.width, config.width // config.heads
    context = {"none": 0, "class": config.class_width, "text": space.text_width}[config.condition.value]
    norms = 2 * d if config.qk_norm else 0
    block = 6 * (c * c + c) + 4 * (c * c + c) + norms + (c * m + m) + (m * c + c)
    if context:
        block += 2 * (c * c + c) + 2 * (context * c + c) + norms
    null = {"none": 0, "class": (len(space.classes) + 1) * context, "text": 0}[config.condition.value]
    values = [grid.values for grid in space.grids(config)]
    ends = sum(v * c + c for v in values) + sum(c * v + v for v in values)
    return config.depth * block + null + (256 * c + c) + (c * c + c) + 2 * (c * c + c) + ends


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("kind", list(Conditioning))
@pytest.mark.parametrize("config", [PAPER, SMALL, TINY], ids=["paper", "small", "tiny"])
def test_parameters_are_as_many_as_the_closed_form_says(config: DiTConfig, kind: Conditioning, qk_norm: bool) -> None:
    config = replace(config, condition=kind, qk_norm=qk_norm)
    space = SPACE if config.width == 24 else replace(BASE, text_width=384, text_empty_tokens=2)
    with torch.device("meta"):
        model = DiT(config, space, statistics=STATISTICS if space is SPACE else None)
    assert sum(weight.numel() for weight in model.parameters()) == closed_form(config, space)


def test_the_papers_preset_in_numbers() -> None:
    config = replace(PAPER, condition=Conditioning.class_)
    with torch.device("meta"):
        model = DiT(config, BASE)
    assert model.tokens == 8 * 7 * 7 + 8 * 14 == 504
    per_token = 18 * (4 * (1152**2 + 1152) + 2 * (1152**2 + 1152) + 2 * 4 * 1152**2 + 5 * 1152)
    assert model.flops_per_sample() == 6 * 504 * per_token


def test_the_pseudo_dit_has_the_papers_count_with_four_layers_and_not_with_six() -> None:
    layer = 4 * (WIDTH**2 + WIDTH) + 2 * WIDTH * HIDDEN + HIDDEN + WIDTH + 2 * 2 * WIDTH
    assert (WIDTH, HEADS, HIDDEN) == (512, 8, 2048)
    assert 4 * layer + 2 * WIDTH == 12_610_560
    assert 6 * layer + 2 * WIDTH == 18_915_328
    grids = [PatchGrid("structure", (4, 16, 8, 8), (2, 2, 2)), PatchGrid("dynamics", (8, 1, 16, 14), (1, 2, 2))]
    for layers, count in ((4, 12_610_560), (6, 18_915_328)):
        with torch.device("meta"):
            model = PseudoDiT(grids, layers)
        assert sum(weight.numel() for weight in model.encoder.parameters()) == count
    given = [torch.randn(1, *grid.shape) for grid in grids]
    assert [part.shape for part in PseudoDiT(grids, 1)(given)] == [part.shape for part in given]


# ---- on disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "class", "text"])
def test_a_saved_model_says_the_same(tmp_path: Path, kind: str) -> None:
    config, condition = conditioned(kind)
    process = ProcessConfig(objective=Objective.flow, schedule=NoiseSchedule.cosine, zero_terminal_snr=True, shift=1.5)
    model = lively(config, process=process).float()
    model.provenance = Provenance(step=7, weights=Weights.ema, settings={}, data={}, program="")
    model.save_pretrained(tmp_path)
    again = DiT.from_pretrained(tmp_path)
    assert (again.config, again.space, again.process) == (config, SPACE, process)
    assert again.provenance == model.provenance
    assert not again.training
    pair = [one.double()(*latents(), TIMES, condition) for one in (model, again)]
    for part, other in zip(*pair, strict=True):
        assert torch.equal(part, other)
    exact = Normaliser(SPACE, STATISTICS)
    for part, other in zip(exact.normalise(latents()), again.float().normaliser.normalise(latents()), strict=True):
        torch.testing.assert_close(part, other)


def test_a_directory_that_is_no_dit_is_refused_by_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json not found"):
        DiT.from_pretrained(tmp_path)
    lively(TINY).float().save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"latents": None}, "config.json: its 'latents' must be keys with values"),
        ({"dit": document["dit"] | {"heads": 5}}, "config.json: dit.heads=5 does not divide dit.width=24"),
        ({"dit": document["dit"] | {"head": 5}}, "config.json: .*'head'"),
        ({"dit": document["dit"] | {"width": 48}}, "weight 'structure_in.weight' has shape"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=message):
            DiT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config\.json is not a JSON file"):
        DiT.from_pretrained(tmp_path)

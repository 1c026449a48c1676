"""VidTwin's public face: shapes for any grid, what is refused, causality, recomputation, files, sizes."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import DynamicsConfig, StructureConfig, VidTwinConfig
from model.network import Latents
from model.noise import Noise, draw_noise
from model.vidtwin import VidTwin
from tests.model.official_weights import GOLDEN
from trainer.config.loader import load_config

CONFIGS = Path(__file__).parents[2] / "configs" / "model"

pytestmark = pytest.mark.numeric
TINY = VidTwinConfig(
    frames=4,
    image_size=40,
    patch_size=8,
    width=32,
    depth=2,
    heads=4,
    structure=StructureConfig(queries=3, query_width=16, query_heads=2, query_layers=2, query_hidden=24, conv_width=8),
    dynamics=DynamicsConfig(channels=6),
)


@dataclass(kw_only=True)
class _Run:
    """A configuration with a model in it, as training has."""

    model: VidTwinConfig = field(default_factory=VidTwinConfig)


def tiny(**changes: object) -> VidTwin:
    """A small model whose temporal attention and last layer matter, unlike a fresh one's."""
    torch.manual_seed(0)
    model = VidTwin(replace(TINY, **changes))  # type: ignore[arg-type]
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3 / parameter.shape[-1] ** 0.25)
    return model


def video_for(model: VidTwin, batch: int = 2) -> Tensor:
    size = model.config.image_size
    return torch.rand(batch, 3, model.config.frames, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    ("frames", "image", "patch", "queries", "halvings"),
    [(4, 40, 8, 3, (1, 1)), (5, 56, 8, 7, (2, 2)), (1, 72, 8, 1, (3, 1)), (3, 16, 8, 5, (0, 0)), (2, 33, 3, 2, (1, 3))],
)
def test_any_grid_that_can_be_halved(
    frames: int, image: int, patch: int, queries: int, halvings: tuple[int, int]
) -> None:
    model = tiny(
        frames=frames,
        image_size=image,
        patch_size=patch,
        structure=replace(TINY.structure, queries=queries, downsamplings=halvings[0]),
        dynamics=replace(TINY.dynamics, downsamplings=halvings[1]),
    )
    video = video_for(model)
    latents = model.encode(video)
    sides = [image // patch, image // patch]
    for index, count in enumerate(halvings):
        for _ in range(count):
            sides[index] = -(-sides[index] // 2)
    assert latents.structure.shape == (2, 4, queries, sides[0], sides[0])
    assert latents.dynamics.shape == (2, 6, frames, 2 * sides[1])
    assert latents.dynamics_w.shape == latents.dynamics_h.shape == (2, 6, frames, sides[1])
    assert model.decode(latents).shape == video.shape
    output = model(video)
    assert output.recon.shape == video.shape
    assert output.hidden.shape == (2, frames * (image // patch) ** 2, 32)
    assert not output.hidden.requires_grad
    (output.recon.square().mean() + output.kl).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_halves_of_the_latent_are_what_their_names_say() -> None:
    """Turning the picture on its side swaps the two dynamics vectors of a model whose weights do not know sides."""
    model = tiny().double()
    model.encoder.patch_positions.zero_()
    kernel = model.config.patch_size
    patch_in = model.patch_in.weight.view(-1, kernel, kernel, 3)
    patch_in.copy_((patch_in + patch_in.transpose(1, 2)) / 2)
    for conv in model.dynamics_encoder.down:
        conv.weight.copy_((conv.weight + conv.weight.transpose(2, 3)) / 2)
    video = video_for(model).double()
    upright, turned = model.encode(video), model.encode(video.transpose(3, 4))
    torch.testing.assert_close(upright.dynamics_w, turned.dynamics_h, atol=1e-9, rtol=0)
    torch.testing.assert_close(upright.dynamics_h, turned.dynamics_w, atol=1e-9, rtol=0)
    assert (upright.dynamics_w - upright.dynamics_h).abs().max() > 0.01


def test_a_frozen_encoder_has_no_dropout_and_no_gradient_and_the_decoder_half_trains() -> None:
    model = tiny(structure=replace(TINY.structure, dropout=0.5)).train()
    video = video_for(model)
    assert not torch.equal(model.encode(video).structure, model.encode(video).structure)
    calm = model.eval().encode(video)
    model.train().freeze_encoder()
    for _ in range(2):
        assert all(torch.equal(*pair) for pair in zip(model.encode(video), calm, strict=True))
        model.eval().train()  # as around a picture
    blocks = sum(parameter.numel() for parameter in model.encoder.blocks.parameters())  # the decoder has as many
    assert model.flops_per_clip() == (2 + 6) * blocks * 4 * 25  # the encoder goes forward only
    assert model.training
    assert all(module.training for part in (model.decoder, model.structure_decoder) for module in part.modules())
    model(video).recon.sum().backward()
    encoding = ("patch_in.", "encoder.", "structure_encoder.", "dynamics_encoder.")
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(encoding), name


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_causality(causal: bool) -> None:
    """Changing the last frame changes earlier features only when the model may look ahead."""
    model = tiny(causal=causal)
    video = video_for(model)
    changed = video.clone()
    changed[:, :, -1] *= -1
    difference = (model.features(video) - model.features(changed)).abs().amax(dim=(0, 2, 3))
    assert difference[-1] > 1e-2
    assert (difference[:-1].max() == 0) == causal


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 4, 40, 48), r"shape \[2, 3, 4, 40, 48\].*needs \[B, 3, 4, 40, 40\]"),
        (torch.zeros(3, 4, 40, 40), r"needs \[B, 3, 4, 40, 40\]"),
        (torch.zeros(2, 3, 4, 40, 40, dtype=torch.uint8), r"torch\.uint8.*video\.float\(\) / 127\.5 - 1"),
        (torch.full((1, 3, 4, 40, 40), 255.0), r"\[255, 255\].*\[-1, 1\]"),
        (torch.full((1, 3, 4, 40, 40), float("nan")), r"nan.*\[-1, 1\]"),
    ],
)
def test_videos_that_do_not_fit(batch: Tensor, message: str) -> None:
    model = tiny()
    with pytest.raises(ValueError, match=message):
        model.encode(batch)


def test_latents_that_do_not_fit() -> None:
    model = tiny()
    latents = model.encode(video_for(model))
    with pytest.raises(ValueError, match=r"latents\.structure has shape \[2, 4, 3, 3\].*needs \[B, 4, 3, 3, 3\]"):
        model.decode(Latents(latents.structure[..., 0], latents.dynamics))
    with pytest.raises(ValueError, match=r"latents\.dynamics has shape"):
        model.decode(Latents(latents.structure, latents.dynamics_w))
    with pytest.raises(ValueError, match="leaves nothing to decode"):
        model.decode(latents, structure=False, dynamics=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["heads=5"], r"model\.heads=5 does not divide model\.width=768"),
        (["width=90", "heads=9"], r"model\.width=90 must be a multiple of 4"),
        (["image_size=100"], r"model\.patch_size=16 does not divide model\.image_size=100; use model\.image_size=96"),
        (["structure.downsamplings=5"], r"model\.structure\.downsamplings=5.*14x14.*at most 4"),
        (["dynamics.downsamplings=1", "image_size=16"], r"1x1 patch grid past 1x1; use at most 0"),
        (["structure.query_heads=7"], r"model\.structure\.query_heads=7 does not divide"),
        (["structure.dropout=1.0"], r"model\.structure\.dropout=1\.0"),
        (["depth=0"], r"model\.depth=0 must be at least 1"),
        (["dynamics.channels=0"], r"model\.dynamics\.channels=0"),
    ],
)
def test_configurations_that_cannot_work(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(VidTwinConfig, overrides=words)


@pytest.mark.parametrize(("dtype", "posterior"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_runs_in_the_weights_dtype(dtype: torch.dtype, posterior: torch.dtype) -> None:
    model = tiny().to(dtype)
    output = model(video_for(model))
    assert (output.recon.dtype, output.kl.dtype) == (dtype, posterior)  # fp32 at least
    assert model.decode(model.encode(video_for(model))).dtype == dtype


def noise_for(model: VidTwin, seed: int, batch: int = 2) -> Noise:
    return draw_noise(model.config, batch, model.config.frames, source=torch.Generator().manual_seed(seed))


def test_draws_come_from_the_noise() -> None:
    model = tiny()
    video = video_for(model)
    means, once, again, other = (
        model(video, noise).recon for noise in (None, *(noise_for(model, seed) for seed in (1, 1, 2)))
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(means, model(video).recon)
    assert not torch.equal(means, once)


@pytest.mark.parametrize("drawn", [False, True])
def test_a_compiler_sees_one_graph_without_a_break(drawn: bool) -> None:
    model = tiny(structure=replace(TINY.structure, dropout=0.1)).train()
    seen = torch._dynamo.explain(model)(video_for(model), noise_for(model, 1) if drawn else None)
    torch._dynamo.reset()
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons


@pytest.mark.parametrize(("mode", "every"), [("full", 1), ("every", 2), ("every", 3), ("selective", 1)])
def test_recomputed_activations_give_the_same_gradients(mode: str, every: int) -> None:
    model = tiny(depth=3)
    video = video_for(model)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        output = model(video, noise_for(model, 3))
        (output.recon.square().sum() + output.kl).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    kept = gradients()
    calls: list[int] = []
    for index, block in enumerate(model.encoder.blocks):
        block.mlp.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    model.set_activation_checkpointing(mode, every)  # type: ignore[arg-type]
    again = gradients()
    assert len(kept) == len(again) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    recomputed = [index for index in range(3) if index % every == 0]
    assert sorted(calls) == sorted([0, 1, 2, *recomputed])


def test_selective_recomputation_does_not_mind_a_linear_layer_that_adds_its_bias_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny()
    video = video_for(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # biases begin as zeros, which may be added twice

    def gradients(mode: str) -> list[Tensor]:
        model.zero_grad()
        model.set_activation_checkpointing(mode)  # type: ignore[arg-type]
        output = model(video)
        (output.recon.square().sum() + output.kl).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    usual = gradients("none")

    def in_place(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """What DeepSpeed 0.19.8 calculates instead at ZeRO 3."""
        if x.dim() == 2 and bias is not None:
            return torch.addmm(bias, x, weight.t())
        product = x.matmul(weight.t())
        return product if bias is None else product.add_(bias)

    monkeypatch.setattr(torch.nn.functional, "linear", in_place)
    assert all(torch.equal(a, b) for a, b in zip(usual, gradients("selective"), strict=True))


class _Calls(TorchDispatchMode):
    """Counts operators by the name that PyTorch gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_selective_recomputation_repeats_no_product_and_no_attention() -> None:
    model = tiny(depth=3)
    video = video_for(model)

    def backward(mode: str) -> Counter[str]:
        model.set_activation_checkpointing(mode)  # type: ignore[arg-type]
        output = model(video)
        with _Calls() as calls:
            (output.recon.square().sum() + output.kl).backward()
        return calls.counts

    none, selective, full = (backward(mode) for mode in ("none", "selective", "full"))
    attention = next(name for name in full if "attention" in name and "backward" not in name)
    products = [sum(counts[name] for name in ("mm", "addmm")) for counts in (none, selective, full)]
    assert [counts[attention] for counts in (none, selective, full)] == [0, 0, 2 * 2 * 3]
    # Two products in the attention within frames, four in that over time, and two in the MLP, whose last one nobody
    # needs again; in 2 x 3 blocks.
    assert [count - products[0] for count in products] == [0, 0, (2 + 4 + 1) * 2 * 3]
    assert selective["gelu"] == full["gelu"] == 2 * 3


def test_unknown_checkpointing_is_refused() -> None:
    with pytest.raises(ValueError, match="none, full, every, selective"):
        tiny().set_activation_checkpointing("some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use 1 or more"):
        tiny().set_activation_checkpointing("every", 0)


def test_saved_and_loaded_is_the_same_function(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "model")
    again = VidTwin.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again(video_for(model)).recon, model(video_for(model)).recon)
    composed = load_config(_Run, [tmp_path / "model" / "config.yaml"])
    assert composed.model == model.config


def test_directories_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        VidTwin.from_pretrained(tmp_path)
    tiny().save_pretrained(tmp_path)
    config = tmp_path / "config.yaml"
    text = config.read_text()
    for before, after, message in (
        ("depth: 2", "depth: 3", r"weight 'decoder\.blocks\.2\..*' is missing"),
        ("depth: 2", "depth: 1", r"weight 'decoder\.blocks\.1\..*' is unknown"),
        ("query_hidden: 24", "query_hidden: 32", r"has shape \[24, 16\].*needs \[32, 16\]|has shape \[16, 24\]"),
        ("depth: 2", "depth: deep", r"config\.yaml: model\.depth"),
        ("depth: 2", "depht: 2", r"config\.yaml: model\.depht"),
        ("model:", "other:", r"no section `model`"),
    ):
        config.write_text(text.replace(before, after))
        with pytest.raises(ValueError, match=message):
            VidTwin.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("preset", "millions", "rate"),
    [("small", 106.1, 0.205), ("base", 311.5, 0.205), ("large", 1237.3, 0.205), ("released", 311.5, 0.335)],
)
def test_presets(preset: str, millions: float, rate: float) -> None:
    """Rates as the paper and the released file name state them; sizes worked out from the layer list below."""
    config = load_config(_Run, [CONFIGS / f"{preset}.yaml"]).model
    with torch.device("meta"):
        model = VidTwin(config)
    assert round(100 * config.compression_rate, 3) == rate
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    c = config.width
    # a block: two attentions (qkv, out), an MLP of ratio 4, six rows of modulation
    block = 2 * (3 * c * (c + 1) + c * (c + 1)) + (4 * c * (c + 1) + c * (4 * c + 1)) + 6 * c
    assert model.flops_per_clip() == 6 * 2 * config.depth * block * 16 * 14 * 14


def test_released_preset_has_exactly_the_released_parameters() -> None:
    """Counted from the released checkpoint's own list, without its layers that are never called."""
    listed = json.loads((GOLDEN / "official_base_keys.json").read_text())
    unused = ("encoder.final_layer.", "decoder.x_embedder.", "loss.")
    sizes = [
        torch.Size(shape).numel()
        for name, (shape, _) in listed.items()
        if not name.startswith(unused) and "pos_embed" not in name
    ]
    with torch.device("meta"):
        model = VidTwin(load_config(_Run, [CONFIGS / "released.yaml"]).model)
    assert sum(p.numel() for p in model.parameters()) == sum(sizes)
    assert len(list(model.parameters())) == len(sizes)


@pytest.mark.parametrize(
    ("queries", "h_s", "d_s", "h_d", "d_d", "rate"),
    [(16, 7, 4, 7, 8, 0.205), (16, 7, 4, 4, 16, 0.215), (12, 7, 4, 7, 8, 0.172)],
)
def test_recommended_latents(queries: int, h_s: int, d_s: int, h_d: int, d_d: int, rate: float) -> None:
    """The three settings docs/model.md recommends, from the paper's ablation."""
    halvings = {7: 1, 4: 2}
    words = [
        *(f"structure.queries={queries}", f"structure.channels={d_s}", f"structure.downsamplings={halvings[h_s]}"),
        *(f"dynamics.channels={d_d}", f"dynamics.downsamplings={halvings[h_d]}"),
    ]
    config = load_config(VidTwinConfig, overrides=words)
    assert config.structure_shape == (d_s, queries, h_s, h_s)
    assert config.dynamics_shape == (d_d, 16, 2 * h_d)
    assert round(100 * config.compression_rate, 3) == rate

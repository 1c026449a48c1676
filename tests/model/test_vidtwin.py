"""VidTwin's public face: shapes for any grid, what is refused, causality, draws, files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.config import VidTwinConfig
from model.network import Latents
from model.vidtwin import VidTwin
from tests.model.tiny_vidtwin import TINY, WithModel, noise_for, tiny, video_for
from trainer.config.loader import load_config

pytestmark = pytest.mark.numeric


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


@pytest.mark.parametrize("drawn", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_compiler_sees_one_graph_without_a_break(drawn: bool) -> None:
    model = tiny(structure=replace(TINY.structure, dropout=0.1)).train()
    seen = torch._dynamo.explain(model)(video_for(model), noise_for(model, 1) if drawn else None)
    torch._dynamo.reset()
    assert (seen.graph_count, seen.graph_break_count) == (1, 0), seen.break_reasons


def test_saved_and_loaded_is_the_same_function(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "model")
    again = VidTwin.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again(video_for(model)).recon, model(video_for(model)).recon)
    composed = load_config(WithModel, [tmp_path / "model" / "config.yaml"])
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

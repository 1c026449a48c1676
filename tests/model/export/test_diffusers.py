"""The directory for diffusers: in a process without this project, with the real diffusers and without it."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.config import VidTwinConfig
from model.export.autoencoder import AutoencoderVidTwin
from model.export.diffusers_directory import settings_of
from model.export.formats import SETTINGS_FILE, TENSORS_FILE, Format
from model.export.latent_statistics import LatentStatistics
from model.export.write import write
from model.network import Latents
from model.noise import draw_noise
from model.vidtwin import VidTwin
from tests.model.export.elsewhere import run_elsewhere, snippets
from tests.model.export.test_graphs import exact_results, inputs_for
from tests.model.tiny_vidtwin import tiny
from tests.tools.rounding import assert_within, with_bounds

pytestmark = pytest.mark.numeric
STATISTICS = LatentStatistics([0.5 * k for k in range(10)], [1.0 + k for k in range(10)])  # 4 + 6 channels

RESULTS = """
import torch
given = torch.load("inputs.pt")
video = given["clips"]
torch.set_grad_enabled(False)
{snippet}
assert video.shape == given["clips"].shape
assert not autoencoder.training
posterior = autoencoder.encode(given["clips"]).latent_dist
found = {{"structure_mean": posterior.mean.structure, "structure_logvar": posterior.logvar.structure}}
for name in ("mean", "logvar"):
    part = getattr(posterior, name).dynamics
    half = part.shape[-1] // 2
    found[f"dynamics_w_{{name}}"], found[f"dynamics_h_{{name}}"] = part[..., :half], part[..., half:]
found["video"] = autoencoder.decode((given["structure"], given["dynamics"])).sample
torch.save({{name: value.clone() for name, value in found.items()}}, "found.pt")
"""
WITH_DIFFUSERS = """
import diffusers
assert isinstance(autoencoder, diffusers.ModelMixin) and isinstance(autoencoder, diffusers.ConfigMixin)
autoencoder.save_pretrained("again")
same = diffusers.AutoModel.from_pretrained("again", trust_remote_code=True)
assert torch.equal(same.decode((given["structure"], given["dynamics"])).sample, found["video"])
same.save_pretrained("third")
code = [open(f"{folder}/autoencoder_vidtwin.py").read() for folder in ("out", "again", "third")]
assert code[0] == code[1] == code[2]
again = diffusers.AutoModel.from_pretrained("third", trust_remote_code=True, torch_dtype=torch.bfloat16)
assert again.dtype is torch.bfloat16 and again.config.latents_std == autoencoder.config.latents_std
difference = again.decode((given["structure"], given["dynamics"])).sample.float() - found["video"]
assert difference.abs().mean() < 0.1 * found["video"].abs().mean()  # bf16 keeps 8 bits
"""


def exported(vidtwin: VidTwin, folder: Path, statistics: LatentStatistics | None = None) -> Path:
    (folder / "out").mkdir()
    write(vidtwin, folder / "out", Format.diffusers, statistics=statistics)
    return folder / "out"


@pytest.mark.parametrize("library", ["diffusers", "none"])
def test_another_process_without_this_project_computes_the_same(library: str, tmp_path: Path) -> None:
    """Both ways to load it are the two snippets of its model card."""
    if library == "diffusers":
        pytest.importorskip("diffusers")
    vidtwin = tiny().eval()
    with_library, without = snippets(exported(vidtwin, tmp_path, STATISTICS))
    inputs = inputs_for(vidtwin, 2)
    torch.save(inputs, tmp_path / "inputs.pt")
    if library == "diffusers":
        script = RESULTS.format(snippet=with_library) + WITH_DIFFUSERS
    else:
        hidden = "sys.modules['diffusers'] = None  # as Python marks a module that cannot be imported\n"
        script = hidden + RESULTS.format(snippet=without)
    run_elsewhere(tmp_path, script)
    exact, bounds = with_bounds(exact_results(vidtwin, inputs))
    assert_within(torch.load(tmp_path / "found.pt"), exact, bounds)


def loaded(vidtwin: VidTwin, statistics: LatentStatistics | None = None) -> AutoencoderVidTwin:
    """The autoencoder of this process, with the weights of a VidTwin, fp64."""
    settings = settings_of(vidtwin.config, statistics)
    arguments = {name: value for name, value in settings.items() if name not in ("_class_name", "auto_map")}
    autoencoder = AutoencoderVidTwin(**arguments)
    autoencoder.vidtwin.load_state_dict(vidtwin.state_dict())
    return autoencoder.double().eval()


@torch.no_grad()
def test_draws_divergence_and_the_whole_autoencoder_are_by_their_definitions() -> None:
    vidtwin = tiny().eval()
    autoencoder = loaded(vidtwin)
    video = inputs_for(vidtwin, 2)["clips"].double()
    posterior = autoencoder.encode(video).latent_dist
    normal = torch.distributions.Normal
    wanted = sum(
        torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0)).flatten(1).sum(1)
        for mean, logvar in zip(posterior.mean, posterior.logvar, strict=True)
    )
    torch.testing.assert_close(posterior.kl(), wanted, atol=1e-9, rtol=1e-9)
    assert posterior.kl().shape == (2,)

    noise = draw_noise(vidtwin.config, 2, 4, source=torch.Generator().manual_seed(5))
    numbers = Latents(noise.structure.double(), torch.cat([noise.dynamics_w, noise.dynamics_h], -1).double())
    drawn = posterior.sample(torch.Generator().manual_seed(5))
    for part, mean, std, epsilon in zip(drawn, posterior.mode(), posterior.std, numbers, strict=True):
        torch.testing.assert_close(part, mean + std * epsilon, atol=1e-9, rtol=1e-9)
    apart = posterior.sample([torch.Generator().manual_seed(seed) for seed in (7, 8)])
    alone = autoencoder.encode(video[1:]).latent_dist.sample([torch.Generator().manual_seed(8)])
    torch.testing.assert_close(apart.structure[1:], alone.structure, atol=1e-9, rtol=1e-9)

    means = autoencoder.decode(posterior.mode(), return_dict=False)[0]
    assert torch.equal(autoencoder(video).sample, means)
    assert torch.equal(autoencoder.encode(video, return_dict=False)[0].mean.dynamics, posterior.mean.dynamics)
    once = autoencoder(video, sample_posterior=True, generator=torch.Generator().manual_seed(5)).sample
    assert torch.equal(once, autoencoder.decode(drawn).sample)
    with pytest.raises(ValueError, match=r"\[-1, 1\] is expected"):
        autoencoder.encode(video * 255)


def test_statistics_scale_each_channel_of_each_latent() -> None:
    vidtwin = tiny()
    autoencoder = loaded(vidtwin, STATISTICS)
    inputs = inputs_for(vidtwin, 2)
    z = Latents(inputs["structure"].double(), inputs["dynamics"].double())
    scaled = autoencoder.normalize(z)
    for part, ours, first in zip(z, scaled, (0, 4), strict=True):
        for channel in range(part.shape[1]):
            mean, std = 0.5 * (first + channel), 1.0 + first + channel
            torch.testing.assert_close(ours[:, channel], (part[:, channel] - mean) / std, atol=1e-9, rtol=0)
    for part, again in zip(z, autoencoder.denormalize(scaled), strict=True):
        torch.testing.assert_close(again, part, atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="no latents_mean and latents_std"):
        loaded(vidtwin).normalize(z)


def test_the_configuration_has_every_setting_of_the_model(tmp_path: Path) -> None:
    vidtwin = tiny(min_frames=3)
    settings = json.loads((exported(vidtwin, tmp_path) / SETTINGS_FILE).read_text())
    assert settings["_class_name"] == "AutoencoderVidTwin"
    assert (settings["frames"], settings["min_frames"], settings["structure"]["queries"]) == (4, 3, 3)
    assert settings["latents_mean"] is settings["latents_std"] is None
    names = {one.name for one in fields(VidTwinConfig)} | {"latents_mean", "latents_std"}
    assert settings.keys() - {"_class_name", "auto_map"} == names
    assert inspect.signature(AutoencoderVidTwin).parameters.keys() == names


def test_the_weights_are_the_models_and_tell_nothing_of_its_training(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    vidtwin = tiny()
    with safetensors.safe_open(exported(vidtwin, tmp_path) / TENSORS_FILE, framework="pt") as file:
        weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
        assert file.metadata() == {"format": "pt"}
    assert weights.keys() == {f"vidtwin.{name}" for name in vidtwin.state_dict()}
    assert all(torch.equal(weights[f"vidtwin.{name}"], value) for name, value in vidtwin.state_dict().items())

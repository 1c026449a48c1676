"""VidTwin is the paper's function: converted official weights reproduce what the paper's own code computed.

In fp64 to 1e-9. In fp32 ours is held to ours in fp64 within what rounding explains (tests/tools/rounding.py), and so
are the official numbers in fp32, which another program made on another processor: the bound must have room for them.
"""

import copy
from functools import cached_property
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from launch import convert_official
from model.config import DiscriminatorConfig
from model.discriminator import PatchDiscriminator, build_discriminator
from model.vidtwin import VidTwin
from tests.model.official_weights import (
    Golden,
    golden_video,
    load_golden,
    load_golden64,
    official_state_dict,
    write_official,
)
from tests.tools.rounding import LEAST_SHARE, Moved, Results, assert_within, with_bounds

pytestmark = pytest.mark.numeric

TOLERANCE = 1e-9
MOMENTS = {"before_disc_start": 0.0, "after_disc_start": 1.0}
"""Golden sets of losses -> how much of the discriminator is in them."""
ADVERSARIAL = "adversarial part of "


class Case:
    """A golden case and our model of it, made by the real conversion script."""

    def __init__(self, name: str, directory: Path) -> None:
        self.golden: Golden = load_golden(name)
        self.golden64 = load_golden64(name)
        checkpoint, config = write_official(directory, official_state_dict(self.golden), self.golden.params)
        output = directory / "converted"
        words = ["--checkpoint", str(checkpoint), "--config", str(config), "--output", str(output)]
        assert convert_official.main(words) == 0
        self.model = VidTwin.from_pretrained(output)
        self.discriminator: PatchDiscriminator = build_discriminator(DiscriminatorConfig())
        self.discriminator.load_state_dict(load_file(output / "discriminator.safetensors"))
        self.logvar = load_file(output / "logvar.safetensors")["logvar"]
        self.video = golden_video(self.golden.input_size)

    def in_fp64(self, moved: Moved) -> Results:
        model, discriminator = (moved.weights(copy.deepcopy(part)) for part in (self.model, self.discriminator))
        assert isinstance(model, VidTwin)
        return computed(model, discriminator, moved(self.logvar), moved(self.video))

    @cached_property
    def exact_and_bounds(self) -> tuple[Results, dict[str, float]]:
        exact, bounds = with_bounds(self.in_fp64)
        for name, part in self._shares_of_d_weight(exact).items():
            bounds[name] = max(bounds[name], LEAST_SHARE * float(part))
        return exact, bounds

    @staticmethod
    def _shares_of_d_weight(exact: Results) -> Results:
        """What of each result is proportional to d_weight: the least that it is held to counts there as well."""
        shares = {name: value for name, value in exact.items() if name.endswith(" d_weight")}
        for name, value in exact.items():
            if name.startswith(ADVERSARIAL):
                shares[name] = shares[f"after_disc_start {name.removeprefix(ADVERSARIAL)}"] = value
        return shares


def computed(model: VidTwin, discriminator: torch.nn.Module, logvar: Tensor, video: Tensor) -> Results:
    """Everything that the golden files hold, by their names; losses have their moment before the name.

    And what the adversarial term has in the total loss and its gradients, under names that begin with `ADVERSARIAL`.
    """
    return arrays_of(model, video) | losses_of(model, discriminator.train(), logvar, video)


@torch.no_grad()
def arrays_of(model: VidTwin, video: Tensor) -> Results:
    output = model(video)
    latents = model.encode(video.clamp(-1, 1))
    z = model.features(video)
    return {
        "z": z.unflatten(2, (model.config.grid, model.config.grid)).permute(0, 4, 1, 2, 3),
        "structure_mean": latents.structure.permute(0, 2, 3, 4, 1),
        "dynamics_w_mean": latents.dynamics_w,
        "dynamics_h_mean": latents.dynamics_h,
        "kl": output.kl,
        "recon": output.recon,
        "decoded": model.decode(latents),
        "recon_structure_only": model.decode(latents, dynamics=False),
        "recon_dynamics_only": model.decode(latents, structure=False),
    }


def losses_of(model: VidTwin, discriminator: torch.nn.Module, logvar: Tensor, video: Tensor) -> Results:
    """The golden README's definitions, written out with plain autograd."""
    logvar = logvar.clone().requires_grad_()
    output = model(video)
    frames = video.shape[0] * video.shape[2]
    absolute = (video - output.recon).abs()
    nll = (absolute / logvar.exp() + logvar).sum() / frames
    logits_fake, logits_real = discriminator(output.recon), discriminator(video)
    g_loss = -logits_fake.mean()
    hinge = 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())

    weight = model.last_layer.weight
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (nll, g_loss)]
    d_weight = 0.05 * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)
    measured_at = {
        "decoder.final_layer.linear.weight": weight,
        "motion_head.weight": model.dynamics_encoder.moments.weight,
        "temporal_qformer.query_embeds": model.structure_encoder.qformer.queries,
        "encoder.x_embedder.proj.weight": model.patch_in.weight,
        "loss.logvar": logvar,
    }
    heard = d_weight.detach() * g_loss
    parts = torch.autograd.grad(heard, [*measured_at.values()][:-1], retain_graph=True)
    results = {f"{ADVERSARIAL}{name}": part.norm() for name, part in zip(measured_at, parts, strict=False)}
    results[f"{ADVERSARIAL}total_loss"] = heard.detach().abs()
    for moment, factor in MOMENTS.items():
        total = nll + factor * heard + 0.001 * output.kl
        gradients = torch.autograd.grad(total, [*measured_at.values()], retain_graph=True)
        terms = {
            "total_loss": total,
            "kl_loss": output.kl,
            "logvar": logvar,
            "nll_loss": nll,
            "rec_loss": absolute.mean(),
            "d_weight": d_weight,
            "g_loss": g_loss,
            "disc_loss": factor * hinge,
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }
        terms |= {name: gradient.norm() for name, gradient in zip(measured_at, gradients, strict=True)}
        results |= {f"{moment} {name}": value.detach().reshape(()) for name, value in terms.items()}
    return results


def losses_in(golden: Golden) -> Results:
    """The losses of a golden file, by the names that `computed` gives them."""
    found = {}
    for moment, losses in golden.losses.items():
        terms = {name: value for name, value in losses.items() if name not in ("p_loss", "disc_factor", "grad_norm")}
        terms.pop("non_saturated_d_loss", None)
        for name, value in (terms | losses["grad_norm"]).items():
            found[f"{moment} {name}"] = torch.tensor(value, dtype=torch.float64)
    return found


@pytest.fixture(scope="module", params=["golden_a", "golden_b"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def test_fp64_is_the_official_code_in_fp64(case: Case) -> None:
    """To 1e-9 of the largest value of an array; found: 1e-14.

    The mean logit of real clips is what is left of logits of size 4.2 that cancel to 7e-4: it is held to 1e-9 of 1.
    """
    ours, theirs = case.exact_and_bounds[0], case.golden64.arrays | losses_in(case.golden64)
    assert {name for name in ours.keys() - theirs.keys() if not name.startswith(ADVERSARIAL)} == {"decoded"}
    assert theirs.keys() <= ours.keys()
    for name, value in theirs.items():
        found = ours[name].flatten()
        if found.numel() > 20_000:  # of those the file has every seventh element
            found = found[::7]
        assert found.shape == value.flatten().shape, name
        size = 1.0 if name.endswith("logits_real") else float(value.abs().max())
        assert (found - value.flatten()).abs().max() <= TOLERANCE * size, name
    assert (ours["decoded"] - ours["recon"]).abs().max() <= TOLERANCE


def test_fp32_is_off_by_no_more_than_rounding_explains(case: Case) -> None:
    assert_within(computed(case.model, case.discriminator, case.logvar, case.video), *case.exact_and_bounds)


def test_the_official_code_in_fp32_lies_within_the_same_bounds(case: Case) -> None:
    """Another program on another processor; the files hold its numbers to the last digit."""
    theirs = case.golden.arrays | losses_in(case.golden)
    exact, bounds = case.exact_and_bounds
    assert_within(theirs, {name: exact[name].reshape(theirs[name].shape) for name in theirs}, bounds)


def test_last_layer_gradient_needs_no_weight(case: Case) -> None:
    """patchify(dL/drecon)^T hidden is autograd's gradient of the last weight, the identity the training step uses."""
    model, video = copy.deepcopy(case.model).double(), case.video.double()
    output = model(video)
    loss = (output.recon * torch.linspace(-1, 1, output.recon.numel()).view_as(output.recon)).square().sum()
    by_autograd, at_recon = torch.autograd.grad(loss, (model.last_layer.weight, output.recon))
    by_hand = torch.einsum("bnp,bnc->pc", model.patchify(at_recon), output.hidden)
    torch.testing.assert_close(by_hand, by_autograd, rtol=0, atol=1e-9 * by_autograd.abs().max().item())

"""VidTwin is the paper's function: converted official weights reproduce what the paper's own code computed."""

from collections.abc import Iterator
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
from tests.model.official_weights import Golden, golden_video, load_golden, official_state_dict, write_official

TOLERANCE = 1e-4


class Case:
    """A golden case and our model of it, made by the real conversion script."""

    def __init__(self, name: str, directory: Path) -> None:
        self.golden: Golden = load_golden(name)
        checkpoint, config = write_official(directory, official_state_dict(self.golden), self.golden.params)
        output = directory / "converted"
        words = ["--checkpoint", str(checkpoint), "--config", str(config), "--output", str(output)]
        assert convert_official.main(words) == 0
        self.model = VidTwin.from_pretrained(output)
        self.discriminator: PatchDiscriminator = build_discriminator(DiscriminatorConfig())
        self.discriminator.load_state_dict(load_file(output / "discriminator.safetensors"))
        self.logvar = load_file(output / "logvar.safetensors")["logvar"]
        self.video = golden_video(self.golden.input_size)


@pytest.fixture(scope="module", params=["golden_a", "golden_b"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Fix the order of the sums.

    A few pre-activations of the discriminator lie within rounding of its leaky ReLU's kink, so d_weight of golden_b
    is 26.447 in fp64, 26.435 in the official fp32 run, and in ours 26.435 on one thread and 26.425 on two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Equal to 1e-4 of the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


def test_latents_and_reconstructions(case: Case) -> None:
    arrays, grid = case.golden.arrays, case.model.config.grid
    with torch.no_grad():
        z = case.model._features(case.video)
        assert_close(z.unflatten(2, (grid, grid)).permute(0, 4, 1, 2, 3), arrays["z"])
        output = case.model(case.video, sample=False)
        latents = case.model.encode(case.video)
        assert_close(latents.structure.permute(0, 2, 3, 4, 1), arrays["structure_mean"])
        assert_close(latents.dynamics_w, arrays["dynamics_w_mean"])
        assert_close(latents.dynamics_h, arrays["dynamics_h_mean"])
        assert output.kl.item() == pytest.approx(arrays["kl"].item(), rel=TOLERANCE)
        assert_close(output.recon, arrays["recon"])
        assert_close(case.model.decode(latents), arrays["recon"])
        assert_close(case.model.decode(latents, dynamics=False), arrays["recon_structure_only"])
        assert_close(case.model.decode(latents, structure=False), arrays["recon_dynamics_only"])


@pytest.mark.parametrize("moment", ["before_disc_start", "after_disc_start"])
def test_loss_terms_and_gradient_norms(case: Case, moment: str) -> None:
    """The golden README's definitions, written out with plain autograd."""
    expected = case.golden.losses[moment]
    model, discriminator = case.model, case.discriminator.train()
    model.zero_grad()
    logvar = case.logvar.clone().requires_grad_()
    output = model(case.video, sample=False)
    frames = case.video.shape[0] * case.video.shape[2]
    absolute = (case.video - output.recon).abs()
    nll = (absolute / logvar.exp() + logvar).sum() / frames
    logits_fake = discriminator(output.recon)
    g_loss = -logits_fake.mean()

    weight = model.last_layer.weight
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].norm() for loss in (nll, g_loss)]
    d_weight = 0.05 * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4)
    factor = expected["disc_factor"]
    total = nll + d_weight * factor * g_loss + 0.001 * output.kl
    total.backward()
    logits_real = discriminator(case.video)
    hinge = 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())

    ours = {
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
    for name, value in ours.items():
        # logits of size 4.2 cancel to a mean of 7e-4 on real clips, so fp32 rounding alone reaches 2e-7 there
        slack = 1e-6 if name == "logits_real" else 0.0
        assert value.item() == pytest.approx(expected[name], rel=TOLERANCE, abs=slack), name
    assert expected.keys() - ours.keys() == {"p_loss", "disc_factor", "grad_norm"}
    gradients = {
        "decoder.final_layer.linear.weight": weight.grad,
        "motion_head.weight": model.dynamics_encoder.moments.weight.grad,
        "temporal_qformer.query_embeds": model.structure_encoder.qformer.queries.grad,
        "encoder.x_embedder.proj.weight": model.patch_in.weight.grad,
        "loss.logvar": logvar.grad,
    }
    assert gradients.keys() == expected["grad_norm"].keys()
    for name, gradient in gradients.items():
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(expected["grad_norm"][name], rel=TOLERANCE), name


def test_last_layer_gradient_needs_no_weight(case: Case) -> None:
    """patchify(dL/drecon)^T hidden is autograd's gradient of the last weight, the identity the training step uses."""
    output = case.model(case.video, sample=False)
    loss = (output.recon * torch.linspace(-1, 1, output.recon.numel()).view_as(output.recon)).square().sum()
    by_autograd, at_recon = torch.autograd.grad(loss, (case.model.last_layer.weight, output.recon))
    by_hand = torch.einsum("bnp,bnc->pc", case.model.patchify(at_recon), output.hidden)
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-4, atol=1e-4 * by_autograd.abs().max().item())

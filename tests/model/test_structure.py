"""Clips of fewer frames than the model's most: against a model that was built for as many."""

import copy
from dataclasses import replace

import pytest
import torch

from model.network import Latents
from model.resize import resize_weights
from model.structure import StructureDecoder
from model.vidtwin import VidTwin
from tests.model.tiny_vidtwin import TINY, tiny, video_for

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def mixed() -> VidTwin:
    """Takes 1 to 4 frames."""
    return tiny(min_frames=1)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_a_shorter_clip_is_what_a_model_of_that_many_frames_makes_of_it(mixed: VidTwin, frames: int) -> None:
    mixed = copy.deepcopy(mixed).double()
    fixed = VidTwin(replace(mixed.config, frames=frames, min_frames=0)).double()
    fixed.load_state_dict(resize_weights(mixed.state_dict(), fixed.state_dict()))
    video = video_for(mixed)[:, :, :frames].double()
    ours, theirs = mixed(video), fixed(video)
    assert ours.recon.shape == video.shape
    torch.testing.assert_close(ours.recon, theirs.recon, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.kl, theirs.kl, rtol=1e-9, atol=0)
    assert ours.hidden.shape == (len(video), frames * 25, mixed.config.width)
    latents = mixed.encode(video)
    assert latents.structure.shape[1:] == mixed.config.structure_shape
    assert latents.dynamics.shape[2] == frames
    torch.testing.assert_close(mixed.decode(latents), ours.recon, rtol=0, atol=1e-9)
    assert mixed.decode(latents, dynamics=False).shape == mixed.decode(latents, structure=False).shape == video.shape


@pytest.mark.parametrize("whole", [True, False])
def test_a_shorter_clip_in_16_bits_whether_or_not_the_buffers_are_cast_too(mixed: VidTwin, whole: bool) -> None:
    """An engine casts the parameters and leaves the buffers; `Module.to` casts both."""
    model = copy.deepcopy(mixed)
    video = video_for(mixed)[:, :, :2]
    exact = model(video).recon
    if whole:
        model.to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    recon = model(video).recon
    assert recon.dtype is torch.bfloat16
    assert (recon.float() - exact).norm() < 0.1 * exact.norm()


def test_all_lengths_train_the_same_weights(mixed: VidTwin) -> None:
    """The mixing of queries into frames learns from a shorter clip: its gradient against finite differences."""
    model = tiny(min_frames=1).double()
    video = video_for(model)[:, :, :2].double()
    weight = model.structure_decoder.mix.weight

    def loss() -> torch.Tensor:
        return model(video).recon.square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    step = 1e-6
    with torch.no_grad():
        for place in ((0, 0), (1, 2), (3, 1)):
            weight[place] += step
            above = loss()
            weight[place] -= 2 * step
            below = loss()
            weight[place] += step
            assert gradient[place].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-4, abs=1e-6)
    assert all((gradient[row] != 0).any() for row in range(4))


def test_other_lengths_are_refused(mixed: VidTwin) -> None:
    video = video_for(mixed)
    longer = torch.cat([video, video[:, :, :1]], dim=2)
    with pytest.raises(
        ValueError, match=r"shape \[2, 3, 5, 40, 40\].*needs \[B, 3, 4, 40, 40\], or fewer frames, down to 1"
    ):
        mixed(longer)
    from_two = tiny(min_frames=2)
    latents = from_two.encode(video)
    with pytest.raises(ValueError, match=r"latents\.dynamics has shape \[2, 6, 1, 6\].*or fewer frames, down to 2"):
        from_two.decode(Latents(latents.structure, latents.dynamics[:, :, :1]))
    with pytest.raises(ValueError, match=r"shape \[2, 3, 3, 40, 40\].*needs \[B, 3, 4, 40, 40\]$"):
        tiny()(video[:, :, :3])
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=rf"model\.min_frames={wrong} must lie in \[1, model\.frames=4\]"):
            replace(TINY, min_frames=wrong)


def test_shorter_clips_leave_the_full_length_as_it_was(mixed: VidTwin) -> None:
    fixed = tiny()
    fixed.load_state_dict(mixed.state_dict())
    video = video_for(mixed)
    assert torch.equal(mixed(video).recon, fixed(video).recon)


def test_a_grid_that_comes_back_larger_is_cut_in_the_middle() -> None:
    """Halved twice, a side of 5 becomes 3 and 2, and comes back as 8: one row goes before it and two behind."""
    decoder = StructureDecoder(replace(TINY.structure, downsamplings=2), TINY.width, 5, 4, 4)
    seen: dict[str, torch.Tensor] = {}
    decoder.conv_out.register_forward_hook(lambda module, inputs, output: seen.update(whole=output))
    decoder.widen.register_forward_pre_hook(lambda module, inputs: seen.update(tokens=inputs[0]))
    decoder(torch.randn(1, 4, 3, 2, 2), 4)
    assert seen["whole"].shape == (3, 16, 8, 8)
    middle = seen["whole"][:, :, 1:6, 1:6]
    assert torch.equal(seen["tokens"][0], middle.permute(0, 2, 3, 1).flatten(1, 2))

"""Model directories as the start of a training: of the same size, of another size, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import CONFIG_FILE, DiscriminatorConfig
from model.discriminator import build_discriminator
from model.official import LOGVAR_FILE
from model.vidtwin import VidTwin
from model.weights import save_tensors
from tests.model.tiny_vidtwin import TINY, tiny, video_for
from trainer.engine.networks import (
    DiscriminatorModule,
    Generator,
    evaluation_copy,
    load_initial_weights,
    write_model,
)

pytestmark = pytest.mark.numeric


@pytest.fixture
def start(tmp_path: Path) -> tuple[Path, Generator, DiscriminatorModule]:
    """What a training leaves in OUTPUT/model, and the networks in it."""
    generator = Generator(tiny(), -1.5)
    discriminator = DiscriminatorModule(build_discriminator(DiscriminatorConfig(width=8, layers=1)), torch.float32)
    write_model(tmp_path / "model", generator.vidtwin.config, generator.state_dict(), discriminator.state_dict(), None)
    return tmp_path / "model", generator, discriminator


def fresh(**changes: object) -> tuple[Generator, DiscriminatorModule]:
    torch.manual_seed(5)
    model = VidTwin(replace(TINY, **changes))  # type: ignore[arg-type]
    return Generator(model, 0.0), DiscriminatorModule(
        build_discriminator(DiscriminatorConfig(width=8, layers=1)), torch.float32
    )


def test_every_weight_comes_back(start: tuple[Path, Generator, DiscriminatorModule]) -> None:
    directory, *trained = start
    built = fresh()
    load_initial_weights(directory, *built)
    for before, after in zip(trained, built, strict=True):
        state = after.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())


def test_another_image_size_and_number_of_frames(start: tuple[Path, Generator, DiscriminatorModule]) -> None:
    """The networks run; tests/model/test_resize.py holds what the resized layers compute."""
    directory, trained, _ = start
    built, discriminator = fresh(image_size=80, position_grid=5)
    load_initial_weights(directory, built, discriminator)
    for name, value in trained.vidtwin.encoder.state_dict().items():
        assert torch.equal(value, built.vidtwin.encoder.state_dict()[name]), name
    assert built.vidtwin(video_for(built.vidtwin)).recon.isfinite().all()
    built, discriminator = fresh(frames=6)
    load_initial_weights(directory, built, discriminator)
    assert built.vidtwin(video_for(built.vidtwin)).recon.isfinite().all()


def test_a_copy_to_evaluate_is_the_same_function_draws_nothing_and_learns_nothing() -> None:
    generator = Generator(tiny(structure=replace(TINY.structure, dropout=0.5)), 0.0)
    video = video_for(generator.vidtwin)
    before = torch.get_rng_state()
    copy = evaluation_copy(generator.vidtwin.config, generator.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in copy.modules())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    wanted = generator.vidtwin.eval().encode(video)
    assert all(torch.equal(*pair) for pair in zip(copy.encode(video), wanted, strict=True))


def test_refused(start: tuple[Path, Generator, DiscriminatorModule], tmp_path: Path) -> None:
    directory, *_ = start
    with pytest.raises(ValueError, match=r"init_from=.*/model knows the positions of a 5x5 .* model\.position_grid=5"):
        load_initial_weights(directory, *fresh(image_size=80))
    with pytest.raises(ValueError, match=r"init_from=.*/model was trained with model\.heads=4, not 2"):
        load_initial_weights(directory, *fresh(heads=2))
    with pytest.raises(ValueError, match=r"model\.safetensors: weight 'patch_in.*' has shape .* needs"):
        load_initial_weights(directory, *fresh(width=64))
    with pytest.raises(ValueError, match=r"weight 'structure_encoder\.qformer\.queries' has shape \[3, 16\]"):
        load_initial_weights(directory, *fresh(structure=replace(TINY.structure, queries=4)))
    for tensors, message in (({}, "'logvar' is missing"), ({"logvar": torch.zeros(3)}, "'logvar' has shape")):
        save_tensors(tensors, directory / LOGVAR_FILE)
        with pytest.raises(ValueError, match=rf"model/logvar\.safetensors: weight {message}"):
            load_initial_weights(directory, *fresh())
    with pytest.raises(ValueError, match=r"model\.safetensors not found"):
        load_initial_weights(tmp_path, *fresh())
    (directory / CONFIG_FILE).unlink()  # without it nobody knows what the weights were trained for
    with pytest.raises(ValueError, match=r"weight 'dynamics_decoder\.stretch.*' has shape"):
        load_initial_weights(directory, *fresh(image_size=80, position_grid=5))

"""What `--help` says of the keys that the methods share is true for the method that is asked."""

from __future__ import annotations

import re

import pytest

from trainer.config.diffusion import DiffusionConfig
from trainer.config.keys import config_keys
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.diffusion.method import LatentDiffusion

METHODS = (TrainConfig, DiffusionConfig)
FOREIGN = {
    TrainConfig: r"\b(DiT|x0|val_loss\w*|loss_(structure|dynamics)|class(es)?|prompts?)\b",
    DiffusionConfig: r"\b(psnr|ssim|lpips|fvd|nll|kl|l1|mse|logvar|discriminator|generator|quer(y|ies)|released)\b",
}


def meanings(cls: type) -> dict[str, str]:
    return {key: note for key, _, _, note in config_keys(cls)}


@pytest.mark.parametrize("cls", METHODS)
def test_no_key_speaks_of_what_only_the_other_method_has(cls: type) -> None:
    shared = meanings(TrainConfig).keys() & meanings(DiffusionConfig).keys()
    text = {key: re.sub("_", " ", note) + note for key, note in meanings(cls).items() if key in shared}
    found = {key: note for key, note in text.items() if re.search(FOREIGN[cls], note)}
    assert found == {}


@pytest.mark.parametrize("cls", METHODS)
def test_a_meaning_belongs_to_a_key_that_exists(cls: type[TrainConfig] | type[DiffusionConfig]) -> None:
    assert cls.meanings.keys() <= meanings(cls).keys()


def test_the_terms_that_help_names_are_those_that_are_measured() -> None:
    told = meanings(DiffusionConfig)
    named = re.findall(r"\w+_\w+", told["rollback.term"])
    assert named == list(LatentDiffusion.terms)
    for term in re.findall(r"val_\w+", told["checkpoint.best"]):
        words = ["output=run", "data.shards=x", "validation.every=5", f"checkpoint.best={term}"]
        assert load_config(DiffusionConfig, [], words).checkpoint.best == term
    example = re.search(r"such as (\w+)", meanings(TrainConfig)["checkpoint.best"])
    assert example is not None
    words = ["output=run", "data.shards=x", "loss.perceptual=none", "validation.every=5"]
    assert load_config(TrainConfig, [], [*words, f"checkpoint.best={example[1]}"]).checkpoint.best == example[1]

"""Every shipped YAML file loads into the configuration it is for, and every key has a meaning in `--help`."""

from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.build.config import ShardsConfig
from model.dit_config import PAPER, Conditioning, DiTConfig
from tests.model.tiny_dit import SMALL
from trainer.config.diffusion import DiffusionConfig
from trainer.config.encoding import EncodingConfig
from trainer.config.keys import config_keys
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

ROOT = Path(__file__).parents[1] / "configs"
REQUIRED = {
    "train": ["output=runs/x", "data.shards=shards"],
    "shards": ["source=videos", "output=shards"],
    "latents": ["model=model", "shards=shards", "output=latents"],
}
# What a file cannot carry: the weights of the perceptual loss and those to start from are the user's own.
WEIGHTS = ["loss.lpips_weights=lpips.safetensors", "init_from=model"]


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.yaml")), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_shipped_file_loads_and_says_what_it_is_for(file: Path) -> None:
    assert file.read_text().startswith("# "), f"{file} needs a header: purpose, hardware, cost"
    if file.parent.name == "shards":
        load_config(ShardsConfig, [file], REQUIRED["shards"])
    elif file.parent.name == "latents":
        load_config(EncodingConfig, [file], REQUIRED["latents"])
    elif file.parent.name == "diffusion":
        load_config(DiffusionConfig, [file], ["output=runs/x", "data.shards=latents"])
    else:
        load_config(TrainConfig, [file], [*REQUIRED["train"], *WEIGHTS, *fitting(file)])


def fitting(file: Path) -> list[str]:
    """The data settings a model file needs beside it."""
    if file.parent.name != "model":
        return []
    from model.config import read_config

    config = read_config(file)
    return [f"data.frames={config.frames}", f"data.image_size={config.image_size}"]


@pytest.mark.parametrize(("name", "preset"), [("paper", PAPER), ("small", SMALL)])
def test_the_presets_of_the_dit_are_those_of_the_program(name: str, preset: DiTConfig) -> None:
    config = load_config(
        DiffusionConfig, [ROOT / "diffusion" / f"{name}.yaml"], ["output=runs/x", "data.shards=latents"]
    )
    assert config.dit == replace(preset, condition=Conditioning.class_)


@pytest.mark.parametrize("cls", [TrainConfig, DiffusionConfig, ShardsConfig, EncodingConfig])
def test_every_key_is_explained(cls: type) -> None:
    silent = [key for key, _, _, note in config_keys(cls) if not note]
    assert not silent

"""The range that `--help` states beside every number is enforced: a little outside of it is refused by key."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from data_pipeline.build.config import ShardsConfig
from trainer.config.diffusion import DiffusionConfig
from trainer.config.encoding import EncodingConfig
from trainer.config.keys import config_keys
from trainer.config.loader import load_config
from trainer.config.text_encoding import TextEncodingConfig
from trainer.config.train import TrainConfig

BASE = {
    TrainConfig: ["output=run", "data.shards=shards", "loss.perceptual=none"],
    DiffusionConfig: ["output=run", "data.shards=latents"],
    ShardsConfig: ["source=videos", "output=shards"],
    EncodingConfig: ["model=model", "shards=shards", "output=latents"],
    TextEncodingConfig: ["encoder=encoder", "latents=latents", "output=texts"],
}
KNOWN = {
    TrainConfig: ("steps", ">= 1"),
    DiffusionConfig: ("steps", ">= 1"),
    ShardsConfig: ("clip.crf", "0 ... 51"),
    EncodingConfig: ("windows.seed", "0 ... 2**63 - 1"),
    TextEncodingConfig: ("unit_captions", ">= 1"),
}
NUMBER = r"(-?\d+(?:\*\*\d+ - 1)?)"


def numbers(cls: type) -> Iterator[tuple[str, str, str]]:
    """Key, type and stated range of every setting that is a number or a list of numbers."""
    for key, kind, _, note in config_keys(cls):
        if re.search(r"\b(int|float)\b", kind):
            stated = re.search(r"\[([^\]]*)\]$", note)
            assert stated is not None, f"{key}: no range at the end of {note!r}"
            yield key, kind, stated[1]


def outside(stated: str, whole: bool) -> list[str]:
    """The nearest values that a stated range leaves out."""
    if match := re.fullmatch(rf"{NUMBER}(?: or \d+)? \.\.\. {NUMBER}", stated):
        low, high = (eval(text) for text in match.groups())  # digits and ** only, see NUMBER
        return [str(low - 1), str(high + 1)] if whole else [str(low - 0.001), str(high + 0.001)]
    match = re.fullmatch(rf"(?:each )?(>=?) {NUMBER}(?:, < {NUMBER})?", stated)
    assert match is not None, f"[{stated}] is not understood"
    low = int(match[2])
    found = [str(low) if match[1] == ">" else str(low - 1) if whole else str(low - 0.001)]
    return found + ([match[3]] if match[3] else [])


CASES = [
    pytest.param(cls, key, value, id=f"{key}={value}")
    for cls in BASE
    for key, kind, stated in numbers(cls)
    if "list" not in kind and " x " not in kind
    for value in outside(stated, "int" in kind)
]


@pytest.mark.parametrize(("cls", "key", "value"), CASES)
def test_a_number_outside_its_stated_range_is_refused_by_key(cls: type, key: str, value: str) -> None:
    with pytest.raises(ValueError, match=re.escape(key)):
        load_config(cls, [], [*BASE[cls], f"{key}={value}"])


@pytest.mark.parametrize("cls", BASE)
def test_every_number_states_its_range(cls: type) -> None:
    found = {key: stated for key, _, stated in numbers(cls)}
    key, stated = KNOWN[cls]
    assert found[key] == stated


@pytest.mark.parametrize(
    "word", ["optim.generator.betas=[0.9,1]", "optim.discriminator.betas=[-0.1,0.9]", "data.frame_counts=[0,16]"]
)
def test_every_number_of_a_list_lies_in_the_stated_range(word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(word.partition("=")[0])):
        load_config(TrainConfig, [], [*BASE[TrainConfig], word])


def test_shares_of_frame_counts_are_above_zero() -> None:
    words = ["data.frame_counts=[8,16]", "data.frame_shares=[0,1]", "model.min_frames=8"]
    with pytest.raises(ValueError, match=r"data\.frame_shares=\[0\.0, 1\.0\] must hold a positive number"):
        load_config(TrainConfig, [], [*BASE[TrainConfig], *words])

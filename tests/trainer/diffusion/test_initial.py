"""A DiT that a training begins from: its files, its latents and what it is told must be those of the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.config import WEIGHTS_FILE
from model.dit_config import DIT_CONFIG_FILE, Conditioning, DiTConfig, DiTDescription
from tests.trainer.diffusion.cases import SPACE
from trainer.diffusion.initial import check_initial_dit

CLASSES = DiTConfig(condition=Conditioning.class_)
TEXT = DiTConfig(condition=Conditioning.text)
MINE, OTHER = "1" * 64, "2" * 64


def directory(folder: Path, config: DiTConfig, **latents: Any) -> Path:
    """A directory with a description and a file of weights, which nobody opens here."""
    DiTDescription(dit=config, latents=replace(SPACE, **latents)).write(folder / DIT_CONFIG_FILE)
    (folder / WEIGHTS_FILE).touch()
    return folder


@pytest.mark.parametrize("missing", [DIT_CONFIG_FILE, WEIGHTS_FILE])
def test_both_files_are_needed(tmp_path: Path, missing: str) -> None:
    (directory(tmp_path, CLASSES) / missing).unlink()
    with pytest.raises(ValueError, match=f"^init_from={tmp_path}: {tmp_path / missing} not found; name a directory"):
        check_initial_dit(tmp_path, CLASSES, SPACE)


@pytest.mark.parametrize(
    ("config", "then", "message"),
    [
        (
            CLASSES,
            {"structure_shape": (3, 2, 2, 2)},
            r"structure_shape=\[3, 2, 2, 2\], and these are \[3, 4, 2, 2\]",
        ),
        (CLASSES, {"dynamics_shape": (2, 2, 4)}, r"of dynamics_shape=\[2, 2, 4\], and these are \[2, 4, 4\]"),
        (CLASSES, {"autoencoder": OTHER}, f"digest {OTHER}, and these are of {MINE}; name a DiT for latents"),
        (CLASSES, {"classes": ("a", "b")}, "knows the classes a, b, and these latents have a, b, c"),
        (TEXT, {"text_encoder": OTHER}, f"reads texts of the encoder {OTHER}, and data.text is of {MINE}; encode"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, config: DiTConfig, then: dict[str, Any], message: str
) -> None:
    now = replace(SPACE, autoencoder=MINE, text_encoder=MINE)
    was = {"autoencoder": MINE, "text_encoder": MINE} | then
    with pytest.raises(ValueError, match=f"^init_from={tmp_path} .*{message}"):
        check_initial_dit(directory(tmp_path, config, **was), config, now)


@pytest.mark.parametrize(
    ("config", "then", "now"),
    [
        (CLASSES, MINE, MINE),
        (CLASSES, "", MINE),  # which model made the latents was not written down in the beginning
        (CLASSES, MINE, ""),
        (DiTConfig(condition=Conditioning.none), MINE, MINE),
    ],
)
def test_what_fits_passes(tmp_path: Path, config: DiTConfig, then: str, now: str) -> None:
    """What a network is not told may be another one: it knows no classes, or no texts."""
    told = config.condition is Conditioning.class_
    its = directory(tmp_path, config, autoencoder=then, text_encoder=OTHER, classes=SPACE.classes if told else ("x",))
    check_initial_dit(its, config, replace(SPACE, autoencoder=now, text_encoder=MINE))

"""A DiT that a training begins from: its files, its latents and what it is told must be those of the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import WEIGHTS_FILE
from model.dit import DiT
from model.dit_config import DIT_CONFIG_FILE, Conditioning, DiTConfig, DiTDescription, ProcessConfig
from model.latent_statistics import ChannelStatistics
from tests.trainer.diffusion.cases import EMPTY_CAPTION, SPACE, STATISTICS
from trainer.diffusion.initial import check_initial_dit, load_initial_dit

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


def test_weights_are_those_of_the_dit_and_what_describes_the_data_is_the_runs_own(tmp_path: Path) -> None:
    """The statistics that normalise the latents, and the embedding of the empty caption."""
    config = DiTConfig(
        width=24, depth=1, heads=2, structure_patch=(1, 1, 1), dynamics_patch=(1, 1), condition=Conditioning.text
    )
    process = ProcessConfig()
    others = {kind: ChannelStatistics(its.deviation, its.deviation) for kind, its in STATISTICS.items()}
    then = DiT(config, SPACE, process, others, torch.full_like(EMPTY_CAPTION, 7.0))
    then.save_pretrained(tmp_path)
    now = DiT(config, SPACE, process, STATISTICS, EMPTY_CAPTION)
    own = {name: value.clone() for name, value in now.state_dict().items()}
    load_initial_dit(tmp_path, now)
    kept = {name for name, value in now.state_dict().items() if not torch.equal(value, then.state_dict()[name])}
    assert kept == {"context.empty", *(f"normaliser.{kind}_mean" for kind in STATISTICS)}
    assert all(torch.equal(now.state_dict()[name], own[name]) for name in kept)
    assert torch.equal(now.state_dict()["context.empty"], EMPTY_CAPTION)

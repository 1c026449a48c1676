"""The catalogue of metrics; rate and tokens of the paper's base model."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.config import VidTwinConfig, read_config
from model.dit_config import DiTConfig
from trainer.evaluation.catalogue import CATALOGUE, Level, rate, tokens

ROOT = Path(__file__).parents[3]


def test_every_metric_says_what_it_is_and_the_document_lists_it() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    for name, metric in CATALOGUE.items():
        assert metric.name == name
        assert metric.better in ("higher", "lower")
        assert f"`{name}`" in text, f"docs/evaluation.md does not list {name}"
    assert {metric.level for metric in CATALOGUE.values()} == set(Level)


def test_the_base_model_has_the_papers_rate_and_the_default_transformer_504_tokens() -> None:
    """Latents of 4 x 16 x 7 x 7 and 8 x 16 x 14 numbers; patches of 2 in time leave 8 x 49 and 16 x 14 / 2 tokens."""
    config = read_config(ROOT / "configs" / "model" / "base.yaml")
    assert isinstance(config, VidTwinConfig)
    assert config.structure_shape == (4, 16, 7, 7)
    assert rate(config) == pytest.approx(100 * (4 * 16 * 49 + 8 * 16 * 14) / (3 * 16 * 224**2))
    assert round(rate(config), 3) == 0.205
    assert tokens(config) == 8 * 49 + 112
    assert tokens(config, DiTConfig(structure_patch=(1, 1, 1), dynamics_patch=(1, 1))) == 16 * 49 + 16 * 14

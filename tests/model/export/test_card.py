"""The model card: front matter that a hub's own library reads, settings, and where the weights come from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from model.export.card import card, write_card
from model.export.formats import Format
from model.provenance import Provenance, Weights
from tests.model.tiny_vidtwin import TINY

PROVENANCE = Provenance(
    step=1234, weights=Weights.ema, settings={"output": "/home/me/secret"}, data={}, program="ab" * 32
)


@pytest.mark.parametrize("form", list(Format))
def test_a_hub_reads_the_front_matter(form: Format, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    write_card(tmp_path, form, TINY, PROVENANCE)
    data = hub.ModelCard.load(tmp_path / "README.md").data
    assert data.pipeline_tag == "video-to-video"
    assert {"vidtwin", "video", "autoencoder"} <= set(data.tags)
    assert data.license is None
    assert data.library_name == {"model": "vidtwin", "torch-export": "pytorch"}.get(form.value, form.value)


def test_the_line_of_the_license_is_there_to_be_filled_in() -> None:
    front = card(Format.model, TINY, None).split("---\n")[1]
    assert "license" not in yaml.safe_load(front)
    filled = re.sub(r"# license: .*", "license: apache-2.0", front)
    assert yaml.safe_load(filled)["license"] == "apache-2.0"


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE))


def test_settings_and_origin_are_in_tables_and_no_path_of_the_training() -> None:
    text = card(Format.diffusers, TINY, PROVENANCE)
    table = rows(text)
    assert (table["frames"], table["structure.queries"], table["dynamics.channels"]) == ("4", "3", "6")
    assert (table["training step"], table["program (SHA-256)"]) == ("1234", "ab" * 32)
    assert "moving average" in table["weights"]
    assert "secret" not in text
    assert "no average" in rows(card(Format.model, TINY, replace(PROVENANCE, weights=Weights.raw)))["weights"]
    assert "not known" in rows(card(Format.model, TINY, replace(PROVENANCE, program="")))["program (SHA-256)"]
    forked = replace(PROVENANCE, forked_from={"run": "/home/me/secret", "step": 7})
    assert rows(card(Format.model, TINY, forked))["forked at step"] == "7"
    assert "secret" not in card(Format.model, TINY, forked)


def test_only_what_loads_the_model_itself_takes_other_lengths() -> None:
    shorter = replace(TINY, min_frames=2)
    assert "or fewer frames, down to 2" in card(Format.diffusers, shorter, None)
    assert "or fewer frames" not in card(Format.onnx, shorter, None)
    assert "[B, 6, 4, 6]" in card(Format.onnx, shorter, None)

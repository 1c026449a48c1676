"""What a model directory says of where its weights come from, read back by the safetensors library itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model.provenance import Provenance, Weights, read_provenance
from model.vidtwin import VidTwin
from tests.model.tiny_vidtwin import tiny

FORKED = {"run": "runs/a", "step": 300}


def provenance(weights: Weights = Weights.ema) -> Provenance:
    settings = {"steps": 600, "optim.generator.betas": [0.5, 0.9], "output": "runs/日本"}
    return Provenance(
        step=600, weights=weights, settings=settings, data={"index": "ab" * 32}, program="cd" * 32, forked_from=FORKED
    )


def test_a_model_directory_says_where_its_weights_come_from(tmp_path: Path) -> None:
    model = tiny()
    model.provenance = provenance()
    model.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "provenance.json").read_text("utf-8"))
    assert said == {
        "format": 1,
        "step": 600,
        "weights": "ema",
        "settings": {"steps": 600, "optim.generator.betas": [0.5, 0.9], "output": "runs/日本"},
        "data": {"index": "ab" * 32},
        "program": "cd" * 32,
        "forked_from": FORKED,
    }
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {key: json.loads(text) for key, text in file.metadata().items()} == {"provenance": said}
    (tmp_path / "provenance.json").unlink()  # the weights' own file is enough
    loaded = VidTwin.from_pretrained(tmp_path).provenance
    assert loaded == provenance()
    assert loaded.describe() == "ema weights of step 600"


def test_the_same_weights_of_the_same_run_are_the_same_bytes(tmp_path: Path) -> None:
    model = tiny()
    model.provenance = provenance()
    written = set()
    for number in range(8):
        model.save_pretrained(tmp_path / str(number))
        written.add((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert len(written) == 1


def test_weights_that_no_training_wrote_have_no_provenance(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "model.safetensors"]
    assert VidTwin.from_pretrained(tmp_path).provenance is None


def changed(**fields: object) -> str:
    return json.dumps(provenance().to_json() | fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        (changed(step="7"), "its step is '7' and must be a whole number"),
        (changed(step=True), "its step is True and must be a whole number"),
        (changed(program=5), "its program is 5 and must be a text"),
        (changed(settings=[]), r"its settings is \[\] and must be keys with values"),
        (changed(forked_from=5), "its forked_from is 5 and must be keys with values"),
        ("{}", "it has no field 'format'"),
        ("[]", "'list' object has no attribute"),
        (json.dumps(provenance().to_json() | {"format": 2}), "its format is 2, and this program reads format 1"),
        (json.dumps(provenance().to_json() | {"weights": "best"}), "'best' is not a valid Weights"),
    ],
)
def test_a_provenance_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, file, metadata={"provenance": text})
    with pytest.raises(ValueError, match=f"{file}: the provenance in its metadata cannot be read .*{message}"):
        read_provenance(file)

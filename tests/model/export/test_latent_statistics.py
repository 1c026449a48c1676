"""The file with mean and deviation of the latents: what is read, and each way in which it can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.export.latent_statistics import read_statistics
from model.weights import weights_digest
from tests.model.tiny_vidtwin import tiny

RIGHT: dict[str, Any] = {
    "structure": {"mean": [0, 1, 2, 3], "std": [1, 1, 1, 0.5]},
    "dynamics": {"mean": [4, 5, 6, 7, 8, 9], "std": [2, 2, 2, 2, 2, 2.5]},
}
MODEL = tiny()


def of_dataset(statistics: dict[str, Any], weights: str) -> str:
    """The parts of a dataset.json that count."""
    return json.dumps({"version": 1, "latents": {"statistics": statistics, "model": {"weights": weights}}})


def test_the_structure_comes_first(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(RIGHT))
    found = read_statistics(tmp_path / "s.json", MODEL)
    assert found.mean == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found.std == [1, 1, 1, 0.5, 2, 2, 2, 2, 2, 2.5]


def test_a_dataset_of_latents_has_its_halves_joined(tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    values = {"structure": source.normal(size=(4, 50)), "dynamics_w": source.normal(3, 2, size=(6, 40))}
    values["dynamics_h"] = source.normal(-1, 1, size=(6, 40))
    kept = {name: {"mean": list(x.mean(1)), "deviation": list(x.std(1)), "values": 1} for name, x in values.items()}
    (tmp_path / "dataset.json").write_text(of_dataset(kept, weights_digest(MODEL.state_dict())))
    both = np.concatenate([values["dynamics_w"], values["dynamics_h"]], axis=1)
    for place in (tmp_path, tmp_path / "dataset.json"):
        found = read_statistics(place, MODEL)
        np.testing.assert_allclose(found.mean, [*values["structure"].mean(1), *both.mean(1)], atol=1e-9)
        np.testing.assert_allclose(found.std, [*values["structure"].std(1), *both.std(1)], atol=1e-9)
    lacking = {"structure": kept["structure"]}
    (tmp_path / "dataset.json").write_text(of_dataset(lacking, weights_digest(MODEL.state_dict())))
    with pytest.raises(ValueError, match=r"latents\.statistics cannot be read \('dynamics_w'\)"):
        read_statistics(tmp_path, MODEL)


def test_latents_of_another_model_are_refused_with_both_digests(tmp_path: Path) -> None:
    """The digest of a model is the one that an encoding writes, whose definition is in model/weights.py."""
    other = tiny()
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[0] += 1
    (tmp_path / "dataset.json").write_text(of_dataset({}, weights_digest(other.state_dict())))
    with pytest.raises(ValueError, match="name latents of this model") as caught:
        read_statistics(tmp_path, MODEL)
    for model in (MODEL, other):
        assert weights_digest(model.state_dict()) in str(caught.value)
    (tmp_path / "dataset.json").write_text(json.dumps({"latents": {"statistics": {}}}))
    with pytest.raises(ValueError, match=r"dataset\.json: latents\.model\.weights cannot be read"):
        read_statistics(tmp_path, MODEL)


def dataset(mean: float) -> str:
    """A dataset.json of this model's latents whose two halves of the dynamics have this mean and its opposite."""
    statistics = {
        name: {"mean": [value] * count, "deviation": [1.0] * count}
        for name, value, count in (("structure", 0.0, 4), ("dynamics_w", mean, 6), ("dynamics_h", -mean, 6))
    }
    return of_dataset(statistics, weights_digest(MODEL.state_dict()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", r"s\.json is not JSON in UTF-8"),
        ("[1]", "does not have the keys structure and dynamics"),
        ({"structure": RIGHT["structure"]}, "does not have the keys structure and dynamics"),
        (RIGHT | {"dynamics": {"mean": [1]}}, "dynamics does not have the keys mean and std"),
        (RIGHT | {"structure": {"mean": [0, 1, 2], "std": [1] * 4}}, r"structure\.mean has 3 entries.*4 channels"),
        (RIGHT | {"structure": {"mean": 1.0, "std": [1] * 4}}, r"structure\.mean has float"),
        (RIGHT | {"structure": {"mean": [0, 1, 2, "x"], "std": [1] * 4}}, r"structure\.mean\[3\]='x' must be a finite"),
        (
            RIGHT | {"structure": {"mean": [0, 1, 2, 10**400], "std": [1] * 4}},
            r"mean\[3\]=10{39} must be a finite number",
        ),
        (dataset(1e200), r"latents\.statistics cannot be read \(.*; it must be"),
        (dataset(10**400), r"latents\.statistics cannot be read \(.*; it must be"),
        (
            RIGHT | {"structure": {"mean": [0, 1, float("nan"), 2], "std": [1] * 4}},
            "it holds NaN, which is no number of JSON",
        ),
        (RIGHT | {"structure": {"mean": [0] * 4, "std": [1, 0, 1, 1]}}, r"structure\.std\[1\]=0 must be above 0"),
    ],
)
def test_what_is_refused(text: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ValueError, match=message):
        read_statistics(tmp_path / "s.json", MODEL)

"""The file with mean and deviation of the latents: what is read, and each way in which it can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.export.latent_statistics import read_statistics
from tests.model.test_vidtwin import TINY

RIGHT: dict[str, Any] = {
    "structure": {"mean": [0, 1, 2, 3], "std": [1, 1, 1, 0.5]},
    "dynamics": {"mean": [4, 5, 6, 7, 8, 9], "std": [2, 2, 2, 2, 2, 2.5]},
}


def test_the_structure_comes_first(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(RIGHT))
    found = read_statistics(tmp_path / "s.json", TINY)
    assert found.mean == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found.std == [1, 1, 1, 0.5, 2, 2, 2, 2, 2, 2.5]


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
        (RIGHT | {"structure": {"mean": [0, 1, float("nan"), 2], "std": [1] * 4}}, r"structure\.mean\[2\]=nan must be"),
        (RIGHT | {"structure": {"mean": [0] * 4, "std": [1, 0, 1, 1]}}, r"structure\.std\[1\]=0 must be above 0"),
    ],
)
def test_what_is_refused(text: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ValueError, match=message):
        read_statistics(tmp_path / "s.json", TINY)

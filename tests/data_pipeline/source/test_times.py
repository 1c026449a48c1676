"""Times in the forms that manifests have, against sums done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from data_pipeline.source.times import seconds_of


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12.5", 12.5),
        (" 3 ", 3.0),
        (7, 7.0),
        ("1:02.5", 62.5),
        ("0:01:02.5", 62.5),
        ("00:00:17.759", 17.759),
        ("1:00:00", 3600.0),
        ("00:00:01,500", 1.5),
        ("250/25", 10.0),
        ("100/30000/1001", 100 * 1001 / 30000),
        ("0/24", 0.0),
    ],
)
def test_forms_of_a_time(value: Any, seconds: float) -> None:
    found = seconds_of(value)
    assert found is not None
    assert math.isclose(found, seconds, rel_tol=1e-12)


@pytest.mark.parametrize(
    "value", ["soon", "1:2:3:4", "-1:30", "1:-30", "1:", ":5", "25/0", "1/2/3/4", "12_5", "0:1_0", True, [1]]
)
def test_what_is_no_time_is_no_number(value: Any) -> None:
    found = seconds_of(value)
    assert found is not None
    assert math.isnan(found)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_no_time(value: Any) -> None:
    assert seconds_of(value) is None

"""Which values an ascending array contains, against NumPy's own answer."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.build.hashes import among


@pytest.mark.parametrize("held", [[], [5], [-(2**63), -3, 5, 5, 2**63 - 1]])
def test_values_among_an_ascending_array(held: list[int]) -> None:
    values = np.array([2**63 - 1, -3, 4, 5, 6, -(2**63), 5], np.int64)
    ordered = np.array(held, np.int64)
    assert among(values, ordered).tolist() == np.isin(values, ordered).tolist()
    assert among(values[:0], ordered).tolist() == []

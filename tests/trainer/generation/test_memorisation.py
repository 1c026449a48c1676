"""How near generated clips lie to training clips, beside how near held-out clips lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from trainer.generation.memorisation import Neighbours, memorisation


def test_near_is_what_lies_nearer_than_the_nearest_twentieth_of_the_held_out_clips() -> None:
    """Of distances 0 ... 100, each a held-out clip, the nearest twentieth ends at 5; the quantiles are NumPy's."""

    def neighbours(distances: Sequence[float]) -> Neighbours:
        names = [f"{number}" for number in range(len(distances))]
        rows = torch.tensor([[distance, distance + 1] for distance in distances])
        return Neighbours(names=names, labels=names, distances=rows, keys=[["a", "b"]] * len(rows), classes=[])

    mine, real = [60.0, 4.5, 7.0, 5.0, 5.5], [float(number) for number in range(100, -1, -1)]
    found = memorisation(neighbours(mine), ("val", neighbours(real)), training=2)
    assert found["as_near_as_05"] == 2
    assert [item["sample"] for item in found["nearest"]] == ["1", "3", "4", "2", "0"]
    for name, distances in (("samples", mine), ("held_out", real)):
        wanted = {"quantile_05": np.quantile(distances, 0.05), "median": np.median(distances), "least": min(distances)}
        assert {key: found[name][key] for key in wanted} == pytest.approx(wanted, rel=1e-6)
    assert memorisation(neighbours(mine), None, training=2)["as_near_as_05"] is None

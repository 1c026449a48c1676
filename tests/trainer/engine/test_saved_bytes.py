"""The bytes that a rank saves, estimated from shapes, against the files that DeepSpeed writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.pair import run_two_ranks
from trainer.checkpoint.staging import CONSTANT, FACTOR


@pytest.mark.slow
def test_what_is_estimated_is_what_is_written(tmp_path: Path) -> None:
    run_two_ranks("tests.trainer.engine.saving", tmp_path, patience=240)
    found = json.loads((tmp_path / "rows.json").read_text())
    assert len(found) == 9
    for name, ranks in found.items():
        for rank, (estimated, written) in enumerate(ranks):
            assert written <= FACTOR * estimated + CONSTANT, (name, rank, estimated, written)
            # On the CPU, the second copy of the weights that do not learn shares the memory of the first.
            assert estimated <= (1.15 if name == "frozen, ZeRO 2" else 1.01) * written, (name, rank, estimated, written)
    assert found["fp32, ZeRO 0"][1][1] == 0
    assert found["fp32, ZeRO 1"][1][1] > 1e6

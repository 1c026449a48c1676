"""One of a thing, and several."""

from __future__ import annotations

import pytest

from data_pipeline.store.counted import counted


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ((1, "shard"), "1 shard"),
        ((2, "shard"), "2 shards"),
        ((0, "shard"), "0 shards"),
        ((1, "sample of another split", "samples of other splits"), "1 sample of another split"),
        ((3, "sample of another split", "samples of other splits"), "3 samples of other splits"),
    ],
)
def test_a_number_has_its_noun(words: tuple[int, str], shown: str) -> None:
    assert counted(*words) == shown

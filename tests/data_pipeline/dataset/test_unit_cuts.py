"""Cuts between units, against the rules that the document states, over many random manifests."""

from __future__ import annotations

from itertools import chain, groupby, pairwise
from random import Random

import numpy as np
import pytest

from data_pipeline.dataset.unit_cuts import cut_within, even_cuts, unit_cuts, video_starts, wanted_and_longest


def manifest(random: Random) -> list[str]:
    """The videos of rows: runs of 1 to 12 rows, of videos that may come back later."""
    return [
        video
        for video in random.choices("abcdefgh", k=random.randint(1, 20))
        for _ in range(random.choice((1, 1, 2, 5, 12)))
    ]


@pytest.mark.parametrize(("wanted", "longest"), [(1, 1), (1, 8), (4, 4), (4, 8), (7, 30), (64, 64)])
def test_units_hold_whole_videos_and_only_a_long_one_is_cut(wanted: int, longest: int) -> None:
    for seed in range(100):
        videos = manifest(Random(seed))
        cuts = unit_cuts(video_starts(videos), len(videos), wanted, longest)
        units = [videos[begin:end] for begin, end in pairwise((0, *cuts, len(videos)))]
        assert all(units)
        assert list(chain.from_iterable(units)) == videos
        runs = [len(list(run)) for _, run in groupby(videos)]
        shared = 0
        for unit, following in pairwise([*units, ["none"]]):
            assert len(unit) <= longest
            assert len(unit) <= wanted or len(set(unit)) == 1, "a unit beyond what is wanted is one video"
            shared += unit[-1] == following[0]
            if unit[-1] != following[0] and following != ["none"]:
                first = next(len(list(run)) for _, run in groupby(following))
                assert len(unit) + first > wanted, "the next video had no room"
        assert shared == cut_within(cuts, video_starts(videos))
        assert shared <= sum(-(-run // longest) - 1 for run in runs), "only what is too long is cut within"


def test_rows_of_different_videos_make_units_of_equal_length() -> None:
    starts = np.arange(25)
    assert unit_cuts(starts, 25, 3, 3) == even_cuts(25, 3) == (3, 6, 9, 12, 15, 18, 21, 24)
    assert unit_cuts(starts, 24, 3, 3) == even_cuts(24, 3) == (3, 6, 9, 12, 15, 18, 21)
    assert unit_cuts(starts[:1], 1, 3, 3) == even_cuts(1, 3) == ()


def test_a_video_longer_than_a_unit_is_cut_at_the_longest() -> None:
    starts = video_starts(["a"] * 2 + ["b"] * 10 + ["c"] * 2)
    assert unit_cuts(starts, 14, 4, 4) == (2, 6, 10)
    assert unit_cuts(starts, 14, 4, 8) == (2, 10)
    assert unit_cuts(starts, 14, 4, 10) == (2, 12)


def test_small_manifests_still_make_work_for_many_cores() -> None:
    assert [wanted_and_longest(0, rows)[0] for rows in (1, 3, 27, 1000, 10_000_000)] == [1, 1, 2, 63, 64]
    assert wanted_and_longest(7, 1000) == (7, 7)

"""Where the rows of a plan are cut into units. Adjacent rows of one video stay in one unit, which fetches it once."""

from __future__ import annotations

import numpy as np

LONGEST = 64
"""Largest number of rows of a unit where the settings leave it open."""


def wanted_and_longest(unit_rows: int, rows: int) -> tuple[int, int]:
    """How many rows a unit should have, and how many it may have so that a video need not be cut.

    Args:
        unit_rows: the setting; 0 leaves both open. Then a small manifest still makes 16 units, for as many cores,
            unless its videos have more rows.
        rows: of the manifest.
    """
    return (unit_rows, unit_rows) if unit_rows else (min(LONGEST, max(1, -(-rows // 16))), LONGEST)


def even_cuts(rows: int, unit_rows: int) -> tuple[int, ...]:
    """The cuts of units of equal length. The last unit may be shorter."""
    return tuple(range(unit_rows, rows, unit_rows))


def unit_cuts(starts: np.ndarray, rows: int, wanted: int, longest: int) -> tuple[int, ...]:
    """The positions of the rows that begin a unit, without the first unit's, which is 0.

    A unit ends with the last video that ends within `wanted` rows. Where the first video of a unit is longer, the unit
    is this video alone. Only a video of more than `longest` rows is cut within.

    Args:
        starts: int64 [videos]: positions in the manifest at which adjacent rows have different videos, ascending; the
            first is 0.
        rows: of the manifest, at least 1.
        wanted: at least 1.
        longest: at least `wanted`.
    """
    assert rows >= 1
    assert longest >= wanted >= 1
    cuts: list[int] = []
    begin = 0
    while begin + wanted < rows:
        following = int(np.searchsorted(starts, begin + wanted, side="right"))  # the first video that starts later
        cut = int(starts[following - 1])
        if cut <= begin:
            cut = min(int(starts[following]) if following < len(starts) else rows, begin + longest)
        if cut >= rows:
            break
        cuts.append(cut)
        begin = cut
    return tuple(cuts)


def cut_within(cuts: tuple[int, ...], starts: np.ndarray) -> int:
    """How many of the cuts part the rows of one video."""
    return len(cuts) - int(np.isin(np.array(cuts, np.int64), starts).sum())


def video_starts(videos: list[str]) -> np.ndarray:
    """The positions at which a video differs from the one before: int64 [starts], beginning with 0."""
    different = [position for position in range(1, len(videos)) if videos[position] != videos[position - 1]]
    return np.array([0, *different], np.int64)

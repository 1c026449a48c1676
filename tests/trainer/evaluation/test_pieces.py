"""Pieces on the disk, and that joined pieces are the same windows in whatever order they came."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from trainer.evaluation.measures import distance
from trainer.evaluation.pieces import Kept, Piece
from trainer.evaluation.sources import Part, Totals, Window
from trainer.evaluation.windows import deviation, joined, mean


def piece(part: str, number: int, values: list[float], *, last: bool = True) -> Piece:
    """A piece whose windows follow those of the piece before."""
    made = Piece(part, number)
    starts = [8 * (10 * number + place) for place in range(len(values))]
    windows = [Window(torch.empty(0), part, start, 2, 12.5) for start in starts]
    features = np.array(values, dtype=np.float32)[:, None, None] * np.array([1, 2], dtype=np.float32)
    made.add(
        windows,
        {"psnr": values, "ssim": [value / 3 for value in values]},
        {"fvd": (features[:, None], features[:, None] + 1)},
    )
    made.totals = Totals(windows=len(values), left_out_frames=3) if last else None
    return made


def test_a_piece_comes_back_as_it_was(tmp_path: Path) -> None:
    part, kept = Part("a.mp4", "size 1", 1), Kept(tmp_path, {"weights": "ab"})
    pieces = [piece("a.mp4", 0, [1 / 3, 0.1 + 0.2], last=False), piece("a.mp4", 1, [1e-17])]
    for one in pieces:
        kept.save(part, one)
    found = Kept(tmp_path, {"weights": "ab"}).load(part)
    for one, other in zip(pieces, found, strict=True):
        assert (one.sources, one.starts, one.intervals, one.fps) == (
            other.sources,
            other.starts,
            other.intervals,
            other.fps,
        )
        assert (one.values, one.totals) == (other.values, other.totals)
        for ours, theirs in zip(one.features["fvd"], other.features["fvd"], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_is_of_other_settings_or_damaged_is_measured_again(tmp_path: Path) -> None:
    part, kept = Part("a.mp4", "size 1", 1), Kept(tmp_path, {"weights": "ab"})
    for one in (piece("a.mp4", 0, [1.0], last=False), piece("a.mp4", 1, [2.0])):
        kept.save(part, one)
    assert len(kept.load(part)) == 2
    assert Kept(tmp_path, {"weights": "cd"}).load(part) == []
    assert kept.load(Part("a.mp4", "size 2", 1)) == []
    first, second = sorted(tmp_path.iterdir())
    second.write_bytes(second.read_bytes()[:100])
    assert [one.number for one in kept.load(part)] == [0]
    first.unlink()  # what follows a gap counts for nothing
    assert kept.load(part) == []


def test_the_end_of_a_part_with_failures_is_not_kept(tmp_path: Path) -> None:
    part, kept = Part("a.mp4", "size 1", 1), Kept(tmp_path)
    whole = piece("a.mp4", 0, [1.0])
    assert whole.totals is not None
    whole.totals.failed.append(("a.mp4", "damaged behind frame 8"))
    kept.save(part, whole)
    assert kept.load(part) == []


def test_the_order_in_which_pieces_come_changes_no_bit() -> None:
    """Values whose plain sum depends on the order."""
    draws = random.Random(0)
    order = {f"v{part}": part for part in range(5)}
    pieces = [
        piece(name, number, [draws.uniform(-1, 1) * 10 ** draws.randint(-9, 9) for _ in range(7)], last=number == 1)
        for name in order
        for number in range(2)
    ]
    first = joined(pieces, order, Totals(remarks=["a remark"]))
    assert first.keys == sorted(first.keys)
    assert (first.totals.sources, first.totals.windows, first.totals.left_out_frames) == (5, 70, 15)
    for _ in range(5):
        draws.shuffle(pieces)
        other = joined(pieces, order, Totals(remarks=["a remark"]))
        assert (other.keys, other.parts, other.totals) == (first.keys, first.parts, first.totals)
        assert mean(other.values["psnr"].tolist()) == mean(first.values["psnr"].tolist())
        both = (distance(found.features["fvd"], allow_few=True) for found in (other, first))
        assert next(both) == next(both)


def test_means_and_deviations_are_those_of_exact_arithmetic() -> None:
    """The plain sum of the first list is 0, and that of its middle third is lost."""
    assert mean([1e16, 1.0, -1e16]) == 1 / 3
    assert mean([1.0, 1e16, -1e16]) == 1 / 3
    assert deviation([1.0, 2.0, 3.0, 4.0]) == np.std([1, 2, 3, 4])


def test_every_video_that_a_search_could_not_use_is_named() -> None:
    """Their reasons stand beside the one folder; a clip of two parts that could not be read is named once."""
    ends = [piece(part, 0, [1.0]) for part in ("0-16", "16-32")]
    for end in ends:
        assert end.totals is not None
        end.totals.failed = [("clip", "damaged")]
    whole = Totals(failed=[("videos", "file name b'\\xe9.mp4' is not UTF-8"), ("videos", "b'\\xe8.mp4' neither")])
    found = joined(ends, {"0-16": 0, "16-32": 1}, whole).totals.failed
    assert found == [("clip", "damaged"), *reversed(whole.failed)]

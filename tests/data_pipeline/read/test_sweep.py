"""Reading a split once for evaluation: every window, in order, the same for any ranks and workers."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.read.sweep import Clips, iterate_clips
from data_pipeline.read.two_tries import TooManyBadSamples
from tests.data_pipeline.dataset.tiny_dataset import Clip, make_clips, split_into_shards, write_dataset
from tests.data_pipeline.read.loading import break_samples, config, zero_video

TRAIN = make_clips(12)
VAL = make_clips(10, frames=(5, 9, 12), split="val")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mixed = [clip for pair in zip(TRAIN, VAL, strict=False) for clip in pair] + TRAIN[10:]
    return write_dataset(tmp_path_factory.mktemp("tiny"), split_into_shards(mixed, (5, 3)))


def centre(clip: Clip, start: int) -> np.ndarray:
    """Four frames from `start`, the middle 32 x 32 of 64 x 48, [3, T, S, S]."""
    with av.open(io.BytesIO(clip.video)) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    return frames[start : start + 4, 8:40, 16:48].transpose(3, 0, 1, 2)


def flat(sweep: object) -> list[tuple[str, int, bytes]]:
    rows = []
    for clips in sweep:  # type: ignore[attr-defined]
        assert isinstance(clips, Clips)
        assert len(clips.captions) == len(clips.labels) == len(clips.indices) == len(clips.video)
        rows += [(k, s, v.numpy().tobytes()) for k, s, v in zip(clips.keys, clips.starts, clips.video, strict=True)]
    return rows


@pytest.mark.parametrize(
    ("windows", "starts"),
    [
        ("first", lambda frames: [0]),
        ("centre", lambda frames: [(frames - 4) // 2]),
        ("all", lambda frames: list(range(0, frames - 3, 4))),
    ],
)
def test_each_window_of_the_split_comes_once_in_order(root: Path, windows: str, starts: object) -> None:
    expected = [(c.key, s, centre(c, s).tobytes()) for c in VAL for s in starts(c.frames)]  # type: ignore[operator]
    settings = config(root, hflip=True)
    whole = iterate_clips(settings, "val", windows=windows, batch_size=3)
    assert flat(whole) == expected == flat(whole)  # and again the same
    assert whole.total == len(expected)
    for ranks in (2, 3, 7):
        sweeps = [iterate_clips(settings, "val", rank=r, world_size=ranks, windows=windows) for r in range(ranks)]
        assert [row for sweep in sweeps for row in flat(sweep)] == expected
        assert sum(len(sweep) for sweep in sweeps) == len(expected)
    assert flat(iterate_clips(config(root, workers=2), "val", windows=windows, batch_size=4)) == expected


def test_batches_are_full_but_the_last(root: Path) -> None:
    assert [len(c.keys) for c in iterate_clips(config(root), "val", batch_size=4)] == [4, 4, 2]


def test_a_limit_spreads_over_the_split(root: Path) -> None:
    keys = [row[0] for row in flat(iterate_clips(config(root), "val", limit=5))]
    assert keys == [c.key for c in VAL[::2]]
    assert len(flat(iterate_clips(config(root), "val", limit=99))) == 10


def test_unreadable_windows_are_absent_and_listed(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, split_into_shards(TRAIN, (5,)))
    keys = break_samples(root, [1, 2, 7], zero_video)
    for workers in (0, 1):
        sweep = iterate_clips(config(root, workers=workers), "train", batch_size=5)
        assert [row[0] for row in flat(sweep)] == [c.key for c in TRAIN if c.key not in keys]
        assert [b.key for b in sweep.bad_samples] == keys
    assert len(flat(iterate_clips(config(root, max_bad_samples=3), "train"))) == len(TRAIN) - 3
    with pytest.raises(TooManyBadSamples, match=r"data\.max_bad_samples=1: 2 samples"):
        flat(iterate_clips(config(root, max_bad_samples=1), "train"))


def test_what_cannot_work_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="windows='middle' is not one of centre, first, all"):
        iterate_clips(config(root), "val", windows="middle")
    with pytest.raises(ValueError, match=r"data\.split='test'"):
        iterate_clips(config(root), "test")
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        iterate_clips(config(root), "val", rank=2, world_size=2)

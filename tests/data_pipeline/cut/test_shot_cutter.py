"""Events in, clips and rejections out: what ends a stretch, when it ends, and what is measured of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import av
import numpy as np
import pytest

from data_pipeline.cut import shot_cutter
from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.encode import Encoded
from data_pipeline.cut.geometry import ClipRefused
from data_pipeline.cut.sampling import Break, ShownFrame
from data_pipeline.cut.shot_cutter import ShotCutter
from tests.data_pipeline.cut.videos import picture

SMALL, DARK = ClipRefused("too_small", (("width", 10.0),)), ClipRefused("hdr", (("transfer", "PQ"),))
OPEN: dict[str, Any] = {"max_frozen": 1.0, "min_motion": 0.0, "max_motion": 255.0}


@pytest.fixture(autouse=True)
def _without_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shot_cutter, "encode_pictures", lambda pictures, config: Encoded(b"mp4", 40.0, 20.0))


def frame(number: int, scene: int = 1, add: int = 0) -> av.VideoFrame:
    image = (picture(number, 64, 64, scene) // 4 + add).astype(np.uint8)
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")


def shown(k: int, what: Any) -> ShownFrame[Any]:
    return ShownFrame(k / 8, k / 8, (k + 1) / 8, what)


def run(events: Iterable[ShownFrame[Any] | Break], **settings: Any) -> ShotCutter:
    cutter = ShotCutter(ClipConfig(**(OPEN | settings)))
    cutter.run(events)
    return cutter


def test_a_refused_stretch_lasts_to_the_end_of_its_last_picture() -> None:
    cutter = run([shown(k, SMALL if k < 3 else DARK) for k in range(5)])
    assert [(item.number, item.reason, item.start, item.end) for item in cutter.rejected] == [
        (0, "too_small", 0.0, 3 / 8),
        (1, "hdr", 3 / 8, 5 / 8),
    ]
    assert [item.measured for item in cutter.rejected] == [{"width": 10.0}, {"transfer": "PQ"}]


def test_neighbouring_slow_stretches_are_one_with_the_widest_gap() -> None:
    events = [Break(k, k + 1.0, "fps_too_low", {"gap": gap}) for k, gap in enumerate((0.5, 0.9, 0.3))]
    (slow,) = run(events).rejected
    assert (slow.number, slow.start, slow.end, slow.measured) == (0, 0.0, 3.0, {"gap": 0.9})
    other = Break(1.0, 2.0, "damaged", {"error": "x"})
    assert [item.end for item in run([events[0], other, events[2]]).rejected] == [1.0, 2.0, 3.0]


def test_slow_stretches_with_a_clip_between_them_are_two() -> None:
    clip = [shown(k, frame(k)) for k in range(8, 24)]
    events = [Break(0.0, 1.0, "fps_too_low", {"gap": 1.0}), *clip, Break(3.0, 4.0, "fps_too_low", {"gap": 1.0})]
    cutter = run(events)
    assert [(item.number, item.start, item.end) for item in cutter.rejected] == [(0, 0.0, 1.0), (2, 3.0, 4.0)]
    assert [(clip.number, clip.start, clip.end) for clip in cutter.clips] == [(1, 1.0, 3.0)]


def test_a_rest_beside_a_gap_is_too_slow_and_any_other_too_short() -> None:
    gap = Break(0.5, 1.0, "fps_too_low", {"gap": 0.5})
    before = run([*(shown(k, frame(k)) for k in range(4)), gap])
    after = run([gap, *(shown(k, frame(k)) for k in range(8, 12))])
    alone = run([shown(k, frame(k)) for k in range(4)])
    assert [item.reason for item in (*before.rejected, *after.rejected)] == ["fps_too_low"] * 2
    assert [(item.reason, item.measured) for item in alone.rejected] == [("too_short", {"seconds": 0.5})]


def test_a_gap_is_forgotten_when_a_clip_has_come_after_it() -> None:
    gap = Break(0.0, 1.0, "fps_too_low", {"gap": 1.0})
    scenes = [shown(k, frame(k) if k < 24 else frame(k, 2, 190)) for k in range(8, 28)]
    cutter = run([gap, *scenes])
    assert [(item.number, item.reason) for item in cutter.rejected] == [(0, "fps_too_low"), (2, "too_short")]
    assert [clip.start for clip in cutter.clips] == [1.0]


def test_after_a_break_cuts_are_looked_for_afresh() -> None:
    """What follows a damaged stretch is compared with nothing before it, and its frames are counted anew."""
    before = [shown(k, frame(k, 2, 190)) for k in range(16)]
    after = [shown(k, frame(k) if k < 40 else frame(k, 2, 190)) for k in range(24, 56)]
    cutter = run([*before, Break(2.0, 3.0, "damaged", {"error": "x"}), *after])
    assert [(clip.start, clip.frames) for clip in cutter.clips] == [(0.0, 16), (3.0, 16), (5.0, 16)]
    assert [item.reason for item in cutter.rejected] == ["damaged"]


def test_the_change_at_a_cut_is_no_change_inside_the_clip_behind_it() -> None:
    scenes = [frame(k) if k < 16 else frame(k, 2, 190) for k in range(32)]
    cutter = run([shown(k, item) for k, item in enumerate(scenes)])
    assert not cutter.rejected
    assert [(clip.start, clip.frames) for clip in cutter.clips] == [(0.0, 16), (2.0, 16)]
    assert max(clip.measures["change"] for clip in cutter.clips) < 20.0
    joined = run([shown(k, item) for k, item in enumerate(scenes)], cut_change=255.0)
    assert [item.reason for item in joined.rejected] == ["cut_inside"], "and it is one that would be refused there"


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_cut_is_waited_for_however_short_clips_are(cut: int) -> None:
    """The detector speaks two thumbnails late; clips of at most two frames must not be closed over a cut meanwhile."""
    scenes = [frame(k) if k < cut else frame(k, 2, 190) for k in range(10)]
    cutter = run([shown(k, item) for k, item in enumerate(scenes)], min_seconds=0.125, max_seconds=0.25)
    assert not cutter.rejected
    starts = [round(clip.start * 8) for clip in cutter.clips]
    assert cut in starts
    assert sum(clip.frames for clip in cutter.clips) == 10
    assert all(clip.frames <= 2 for clip in cutter.clips)


def test_the_mean_loss_is_judged_and_the_worst_is_noted() -> None:
    events = [shown(k, frame(k)) for k in range(16)]
    (clip,) = run(events, min_psnr=40.0).clips
    assert (clip.measures["psnr"], clip.measures["worst_psnr"]) == (40.0, 20.0)
    (lost,) = run(events, min_psnr=40.1).rejected
    assert (lost.reason, lost.measured["worst_psnr"]) == ("encode_loss", 20.0)

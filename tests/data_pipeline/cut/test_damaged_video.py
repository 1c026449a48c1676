"""Damaged videos: what is lost is recorded, and nothing that is damaged is stored."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.sampling import Break, ShownFrame
from data_pipeline.cut.sequential import SequentialSamples
from data_pipeline.cut.video import UndecodableVideo
from tests.data_pipeline.cut.videos import GOPS, OPEN, numbered_video, numbers, packets, with_zeroed_packet


@pytest.mark.parametrize("victim", [50, 58, 59, 60, 61, 62, 69, 110, 149])
def test_damage_costs_its_group_of_pictures_and_nothing_damaged_is_stored(tmp_path: Path, victim: int) -> None:
    # 200 frames in 4 groups of 50; all stored frames must be those of the undamaged file.
    clean = numbered_video(tmp_path / "clean.mp4", 200, options=GOPS)
    (reference,) = cut_clips(clean, config=OPEN).clips
    spoiled = tmp_path / "spoiled.mp4"
    spoiled.write_bytes(clean.read_bytes())
    result = cut_clips(with_zeroed_packet(spoiled, victim), config=ClipConfig(**{**vars(OPEN), "max_damage": 0.6}))
    damaged = [item for item in result.rejected if item.reason == "damaged"]
    if not damaged:  # a frame that nothing needs: neither decoded nor missed
        assert victim in (59, 61, 149)
        assert [clip.data for clip in result.clips] == [reference.data]
        return
    assert len(damaged) == 1
    assert damaged[0].start <= victim / 25 <= damaged[0].end <= (victim // 50 + 1) * 2.0 + 0.13
    truth = dict(zip(reference.source_pts, numbers(reference.data), strict=True))
    kept = [pair for clip in result.clips for pair in zip(clip.source_pts, numbers(clip.data), strict=True)]
    assert kept
    for pts, number in kept:
        assert number == truth[pts] == round(pts * 25)
        assert not damaged[0].start <= pts < damaged[0].end
    lost = set(truth) - {pts for pts, _ in kept}
    accounted = [(item.start - 0.04, item.end) for item in result.rejected]
    assert all(any(a <= pts <= b for a, b in accounted) for pts in lost)  # nothing vanishes without a record


def test_much_damage_is_quarantined(tmp_path: Path) -> None:
    path = with_zeroed_packet(numbered_video(tmp_path / "v.mp4", 200, options={"g": "200"}), 20)
    with pytest.raises(UndecodableVideo, match=r"lost to decode errors, more than clip\.max_damage=0\.25; first: "):
        cut_clips(path, config=OPEN)


def test_a_file_that_ends_early_gives_what_is_there_and_says_what_is_missing(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mp4", 200, options=GOPS, container_options={"movflags": "faststart"})
    position, size, _ = packets(path)[120]
    path.write_bytes(path.read_bytes()[: position + size // 2])
    result = cut_clips(path, config=OPEN)
    stored = [number for clip in result.clips for number in numbers(clip.data)]
    assert stored
    assert stored == [int(k * 25 / 8 + 1e-9) for k in range(len(stored))]
    assert max(stored) < 120
    (missing,) = [item for item in result.rejected if item.reason == "truncated"]
    assert missing.end == pytest.approx(8.0)
    assert missing.start == pytest.approx(120 / 25, abs=0.1)


def test_a_stream_that_begins_without_a_keyframe_begins_at_the_first_one(tmp_path: Path) -> None:
    whole = numbered_video(tmp_path / "whole.mkv", 150, options=GOPS)
    headless = tmp_path / "headless.mkv"
    with av.open(str(whole)) as source, av.open(str(headless), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= 20:
                packet.stream = stream
                target.mux(packet)
    result = cut_clips(headless, config=ClipConfig(**{**vars(OPEN), "max_damage": 0.5}))
    (clip,) = result.clips
    assert numbers(clip.data)[0] == 50
    assert [item.reason for item in result.rejected] == ["damaged"]


class HiddenDamage:
    """A decoder of one frame a packet, with keyframes 0, 20, 40 and 60. The packet of keyframe 40 gives an error.

    The frame comes out all the same, late and unmarked, as a decoder does that conceals errors.
    """

    name = "made up"
    skip_frame = ""

    def decode(self, packet: Any) -> list[Any]:
        if packet is None:
            return []
        if packet.pts == 40:
            raise av.error.InvalidDataError(1094995529, "Invalid data found when processing input")
        return [self._frame(number) for number in ([40, 41] if packet.pts == 41 else [packet.pts])]

    def _frame(self, number: int) -> Any:
        return SimpleNamespace(pts=number, dts=number, key_frame=number % 20 == 0, is_corrupt=False)


def test_a_damaged_keyframe_does_not_end_its_own_damage() -> None:
    """Frames 41 to 59 are built on keyframe 40; the next one that no damage has reached is 60."""
    packets = [
        SimpleNamespace(size=1, pts=number, dts=number, is_keyframe=number % 20 == 0, is_discard=False)
        for number in range(80)
    ]
    source: Any = SimpleNamespace(
        codec=HiddenDamage(),
        counted=False,
        time_base=Fraction(1, 8),
        path=Path("made-up.mp4"),
        packets=lambda since, head: iter([*packets, SimpleNamespace(size=0)]),
    )
    samples: SequentialSamples[int] = SequentialSamples(
        source, 8, None, None, head=None, since=None, prompt=False, opening=0.0, take=lambda frame: frame.pts,
        max_seconds=60.0,
    )  # fmt: skip
    found = list(samples)
    shown = [item.picture for item in found if isinstance(item, ShownFrame)]
    assert set(shown) & set(range(40, 60)) == set()
    assert shown[-20:] == list(range(60, 80))
    (lost,) = (item for item in found if isinstance(item, Break))
    assert (lost.reason, lost.end) == ("damaged", 60 / 8)

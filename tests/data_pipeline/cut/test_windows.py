"""Windows in the middle of a file: their frames, and what is recorded of them, do not depend on what lies before."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import av
import pytest

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.video import UndecodableVideo
from tests.data_pipeline.cut.test_clocks import eighths, found, shown
from tests.data_pipeline.cut.videos import (
    GOPS,
    OPEN,
    ffprobe_times,
    numbered_video,
    picture,
    with_zeroed_packet,
    write_video,
)

SMALL = ClipConfig(**{**vars(OPEN), "min_short_side": 64, "short_side": 128, "min_seconds": 0.5})


@pytest.fixture(scope="module", params=["v.mp4", "v.ts"])
def refreshed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 frames of an encoder with periodic intra refresh: 1 IDR picture, and a recovery point every 2 seconds."""
    path = tmp_path_factory.mktemp("refreshed") / request.param
    options = {"preset": "veryfast", "x264-params": "keyint=50:intra-refresh=1:bframes=0"}
    numbered_video(path, 300, width=160, height=128, options=options)
    with av.open(str(path)) as file:
        assert [file.streams.video[0].codec_context.name] == ["h264"]
        assert sum(packet.is_keyframe for packet in file.demux(video=0)) == 6
    return path


@pytest.mark.parametrize("start", [2.0, 4.08, 10.0, 11.0])
def test_a_window_after_a_recovery_point_has_the_frames_that_the_file_shows(refreshed: Path, start: float) -> None:
    """The pictures after the point depend on those before it, until all parts of the picture have been refreshed."""
    first = ffprobe_times(refreshed)[0]
    result = cut_clips(refreshed, start=first + start, end=first + start + 1, config=SMALL)
    assert [numbers for _, numbers in found(result)] == [shown(eighths(start, start + 1))]
    assert result.rejected == []


@pytest.mark.parametrize("fate", ["a fifth", "a third"])
def test_the_share_that_may_be_lost_is_one_of_the_window(fate: str, tmp_path: Path) -> None:
    """12 s with two keyframes: the damage reaches to the second one, and the window begins far behind the first."""
    path = numbered_video(tmp_path / "v.mp4", 300, width=160, height=128, options=GOPS | {"g": "250", "bf": "0"})
    with_zeroed_packet(path, 247)
    end = 11.9 if fate == "a fifth" else 10.6
    lost = 10.0 - 9.35  # from the first sample within 16 frames before the damaged one to frame 250
    assert (lost < 0.25 * (end - 8.6)) == (fate == "a fifth")
    assert lost < 0.25 * end, "of all that is decoded it is little"
    if fate == "a third":  # the last sample is due 1.875 s after the begin
        with pytest.raises(UndecodableVideo, match=r"0\.65 of 1\.88 s lost"):
            cut_clips(path, start=8.6, end=end, config=SMALL)
    else:
        (damaged,) = cut_clips(path, start=8.6, end=end, config=SMALL).rejected
        assert (damaged.reason, damaged.start, damaged.end) == ("damaged", pytest.approx(9.35), 10.0)


def test_a_window_of_a_held_picture_is_rejected_as_it_was_asked_for(tmp_path: Path) -> None:
    pts = [n if n < 60 else n + 200 for n in range(100)]
    path = write_video(tmp_path / "v.mp4", (picture(n, 160, 128) for n in range(100)), pts=pts, options=GOPS)
    (refused,) = cut_clips(path, start=4.0, end=6.0, config=SMALL).rejected
    assert (refused.reason, refused.start, refused.end) == ("fps_too_low", 4.0, 6.0)
    assert refused.measured["longest_gap"] == pytest.approx(201 / 25)


def with_edits(path: Path, edits: Sequence[tuple[float | None, float]]) -> Path:
    """The same mp4 with another edit list: (begin in the recording, length) in seconds; None shows nothing.

    ISO/IEC 14496-12, 8.6.6: an entry is its length in ticks of the movie, where it begins in those of the track, and
    its speed. The boxes around it grow with it; `moov` lies at the end of the file, so no other offset changes.
    """
    data = bytearray(path.read_bytes())

    def box(*names: bytes) -> list[int]:
        begin, end, chain = 0, len(data), []
        for name in names:
            while data[begin + 4 : begin + 8] != name:
                begin += int.from_bytes(data[begin : begin + 4])
            assert begin < end
            chain.append(begin)
            end, begin = begin + int.from_bytes(data[begin : begin + 4]), begin + 8
        return chain

    def number(position: int) -> int:
        return int.from_bytes(data[position : position + 4])

    movie, track = (
        number(box(*names)[-1] + 20) for names in ((b"moov", b"mvhd"), (b"moov", b"trak", b"mdia", b"mdhd"))
    )
    *around, list_at = box(b"moov", b"trak", b"edts", b"elst")
    first = number(list_at + 20)  # of the encoder's own edit: where the first picture is
    entries = [
        struct.pack(">IiI", round(length * movie), -1 if begin is None else first + round(begin * track), 0x10000)
        for begin, length in edits
    ]
    body = struct.pack(">II", 0, len(entries)) + b"".join(entries)
    old = number(list_at)
    data[list_at : list_at + old] = struct.pack(">I4s", 8 + len(body), b"elst") + body
    for position in around:
        data[position : position + 4] = (number(position) + 8 + len(body) - old).to_bytes(4)
    edited = path.with_name("edited.mp4")
    edited.write_bytes(data)
    return edited


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 s with a keyframe each second and B-frames."""
    path = tmp_path_factory.mktemp("recording") / "v.mp4"
    return numbered_video(path, 150, width=160, height=128, options=GOPS | {"g": "25", "keyint_min": "25"})


@pytest.mark.parametrize(
    "edits",
    [
        pytest.param([(0.0, 2.0), (3.0, 2.0)], id="a piece left out"),
        pytest.param([(3.0, 2.0), (0.0, 2.0)], id="pieces in another order"),
        pytest.param([(1.0, 1.6), (1.0, 1.6)], id="a piece twice"),
    ],
)
def test_pieces_of_an_edit_list_are_one_recording(recording: Path, edits: list[tuple[float | None, float]]) -> None:
    """What the list leaves out between the pieces belongs to no window, and ends none."""
    path = with_edits(recording, edits)
    played = [round(25 * (begin or 0.0)) + n for begin, length in edits for n in range(round(25 * length))]
    seconds = len(played) / 25
    for start, end in ((None, None), (1.1, 2.7), (2.4, seconds)):
        result = cut_clips(path, start=start, end=end, config=SMALL)
        grid = [(start or 0.0) + k / 8 for k in range(40)]
        times = [time for time in grid if time < (end or seconds) and time < seconds - 1 / 25 + 1e-6]
        assert found(result) == [(start or 0.0, [played[int(25 * time + 1e-6)] for time in times])]
        assert result.rejected == []


def test_a_recording_that_begins_late_and_ends_before_its_media_lacks_nothing(recording: Path) -> None:
    (clip,) = (result := cut_clips(with_edits(recording, [(None, 1.5), (0.48, 3.0)]), config=SMALL)).clips
    assert (clip.start, clip.frames) == (1.5, 24)
    assert result.rejected == []

"""A Matroska file that was cut off is told from a whole one, by bytes written by hand after RFC 8794 and 9559."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest

from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.frames import Break, open_frames
from data_pipeline.cut.matroska import is_cut_off
from tests.data_pipeline.cut.videos import OPEN, numbered_video

HEADER = bytes.fromhex("1a45dfa3 84 42868101")
CLUSTER = bytes.fromhex("1f43b675 8a e78105 a3858100008055")
ENDLESS = (  # as a browser records: neither the segment nor its first cluster says its length
    HEADER,
    bytes.fromhex("18538067 01ffffffffffffff"),
    bytes.fromhex("1f43b675 ff"),
    bytes.fromhex("e7 81 00"),  # a time
    bytes.fromhex("a3 4005 81000080aa"),  # a block whose length takes two bytes
    CLUSTER,
)


def told(data: bytes, path: Path) -> bool:
    path.write_bytes(data)
    return is_cut_off(path)


def test_without_the_length_of_the_whole_a_file_is_cut_off_that_ends_within_a_part(tmp_path: Path) -> None:
    whole, ends = b"".join(ENDLESS), {0, *accumulate(map(len, ENDLESS))}
    for length in range(len(whole) + 1):
        assert told(whole[:length], tmp_path / "v.mkv") == (length not in ends), length


def test_with_the_length_of_the_whole_every_end_before_it_is_told(tmp_path: Path) -> None:
    whole = HEADER + bytes.fromhex("18538067 10000020") + 2 * CLUSTER + bytes.fromhex("ec 80")
    for length in range(len(HEADER) + 1, len(whole)):
        assert told(whole[:length], tmp_path / "v.mkv"), length
    assert not told(whole, tmp_path / "v.mkv")
    # No element begins like the first three. The last two, a tag of ID3 and a zip archive, look like cut off ones.
    for behind in (bytes(100), b"\x01\x00", b"\x1a\x45\xdf\xa3\x00", b"TAG" + bytes(125), b"PK\x03\x04"):
        assert not told(whole + behind, tmp_path / "v.mkv")
    assert not told(HEADER + bytes.fromhex("1654ae6b ff") + CLUSTER[:-1], tmp_path / "v.mkv"), "no tracks are endless"


@pytest.mark.parametrize("share", [1, 0.7])
def test_what_a_cut_off_file_still_holds_is_given_and_its_end_is_told(share: float, tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "v.mkv", 80, options={"g": "10"})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with open_frames(path) as reader:
        *taken, last = reader.frames(1, lambda pixels: 0)
    result = cut_clips(path, config=OPEN)
    assert result.clips
    if share == 1:
        assert len(taken) == 79
        assert not isinstance(last, Break)
        assert not result.rejected
    else:
        assert isinstance(last, Break)
        (rejected,) = result.rejected
        assert rejected.reason == last.reason == "truncated"
        assert rejected.start == pytest.approx(last.start) == pytest.approx(len(taken) / 25)
        assert rejected.end == pytest.approx(80 / 25)

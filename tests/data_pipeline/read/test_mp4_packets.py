"""Packet tables against libavformat's reading of the same files."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipeline.read.mp4_packets import read_packet_table
from tests.data_pipeline.dataset.tiny_dataset import encode_clip, real_frames, real_video
from tests.data_pipeline.read.test_clip_decoder import encode_mjpeg


def demuxed(data: bytes) -> list[tuple[Fraction, int, bool, bytes]]:
    """(time, size, keyframe, bytes) of each packet, by libavformat."""
    with av.open(io.BytesIO(data)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        return [(p.pts * p.time_base, p.size, p.is_keyframe, bytes(p)) for p in packets]


def remux(data: bytes, path: Path, **options: Any) -> bytes:
    with av.open(io.BytesIO(data)) as source, av.open(str(path), "w", **options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path.read_bytes()


@pytest.mark.parametrize(("gop", "b_frames"), [(1, 0), (4, 0), (8, 2), (50, 3), (16, 0)])
@pytest.mark.parametrize("layout", ["plain", "faststart"])
def test_packets_are_those_libavformat_finds(gop: int, b_frames: int, layout: str, tmp_path: Path) -> None:
    data = encode_clip("bikes.mp4", 3, 21, 64, 48, gop=gop, b_frames=b_frames)
    if layout == "faststart":
        data = remux(data, tmp_path / "x.mp4", options={"movflags": "faststart"})
    table = read_packet_table(data)
    assert table is not None
    keys = set(table.keys.tolist())
    ours = [
        (shown * table.tick, size, number in keys, data[at : at + size])
        for number, (at, size, shown) in enumerate(
            zip(table.offsets.tolist(), table.sizes.tolist(), table.shown.tolist(), strict=True)
        )
    ]
    assert ours == demuxed(data)
    with av.open(io.BytesIO(data)) as container:
        assert table.decoder_header == container.streams.video[0].codec_context.extradata


def test_the_colours_of_the_container_are_read() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 1, 13, 1, 2
        frame = av.VideoFrame.from_ndarray(real_frames("bikes.mp4", 64, 48)[0], format="yuv420p")
        frame.pts, frame.time_base = 0, Fraction(1, 8)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    table = read_packet_table(buffer.getvalue())
    assert table is not None
    assert table.colour == (1, 13, 1, True)
    other = read_packet_table(buffer.getvalue().replace(b"nclx", b"prof"))  # a profile, which says it in another way
    assert other is not None
    assert other.colour is None


def test_every_other_file_is_left_to_libavformat(tmp_path: Path) -> None:
    clip = encode_clip("bikes.mp4", 3, 21, 64, 48)
    fragmented = remux(clip, tmp_path / "x.mp4", options={"movflags": "frag_keyframe+empty_moov"})
    for other in (encode_mjpeg(3), fragmented, remux(clip, tmp_path / "x.mkv"), b"", b"junk" * 99, clip[:500]):
        assert read_packet_table(other) is None
    with av.open(str(real_video("bigbuckbunny.mp4"))) as container:
        assert len(container.streams) > 1  # sound as well
    assert read_packet_table(real_video("bigbuckbunny.mp4").read_bytes()) is None


def changed(data: bytes, name: bytes, at: int, value: int) -> bytes:
    """The 32-bit number so many bytes behind a box's name."""
    place = data.index(name) + len(name) + at
    return data[:place] + value.to_bytes(4, "big") + data[place + 4 :]


def test_tables_that_say_what_no_stored_clip_has_are_left_to_libavformat() -> None:
    clip = encode_clip("bikes.mp4", 3, 21, 64, 48, b_frames=2)
    assert read_packet_table(clip) is not None
    for other in (
        changed(clip, b"stss", 8, 22),  # a keyframe behind the last packet
        changed(clip, b"stss", 8, 2),  # nothing to begin with
        changed(clip, b"elst", 16, 1 << 15),  # shown at half the speed
        changed(clip, b"elst", 4, 2),  # two edits
        changed(clip, b"stsd", 4, 2),  # two kinds of packets
        changed(clip, b"mdhd", 12, 0),  # no seconds
        clip.replace(b"udta", b"mvex"),  # fragments may follow
    ):
        assert other != clip
        assert read_packet_table(other) is None


def test_damaged_tables_never_point_outside_the_file() -> None:
    clip = encode_clip("bikes.mp4", 3, 21, 64, 48, b_frames=2)
    begin, rng, found = clip.index(b"moov"), np.random.default_rng(0), 0
    for _ in range(1500):
        damaged = bytearray(clip)
        for at in rng.integers(begin, len(clip), 2):
            damaged[at] = rng.integers(0, 256)
        table = read_packet_table(bytes(damaged))
        if table is not None:
            found += 1
            assert table.offsets.min() >= 0
            assert table.sizes.min() >= 0
            assert 0 <= table.keys.min() <= table.keys.max() < len(table.sizes)
            assert (table.offsets + table.sizes).max() <= len(clip)
            assert len(table.offsets) == len(table.sizes) == len(table.shown)
    assert found > 100

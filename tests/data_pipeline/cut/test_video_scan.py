"""What is decided before and between decoded frames, packet by packet, with packets and frames made by hand."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av.error
import pytest

from data_pipeline.cut.packet_times import Scan
from data_pipeline.cut.sampling import Break, FramePlan, Grid, ShownFrame, planned_samples, shown_once
from data_pipeline.cut.video import PlanFailed, SourceTooLong, VideoSource
from data_pipeline.ffmpeg import raise_if_out_of_memory
from tests.data_pipeline.cut.videos import numbered_video

TICK = Fraction(1, 100)
MP4 = SimpleNamespace(name="mov,mp4,m4a,3gp,3g2,mj2")


def packet(pts: int | None, dts: int | None = None, **rest: Any) -> SimpleNamespace:
    usual = {"size": 10, "duration": 4, "is_discard": False, "is_corrupt": False, "is_keyframe": False}
    return SimpleNamespace(pts=pts, dts=pts if dts is None else dts, **(usual | rest))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return numbered_video(tmp_path_factory.mktemp("video") / "v.mp4", 10, width=64, height=64)


def scan(
    video: Path,
    packets: list[SimpleNamespace],
    *,
    start: int | None = None,
    end: int | None = None,
    limit: float = 10.0,
) -> Scan:
    """`VideoSource.scan` of H.264 packets at ticks of 10 ms; window in ticks, limit in seconds."""
    with VideoSource(video) as source:
        source.time_base = TICK
        source.packets = lambda start: iter(packets)  # type: ignore[method-assign, assignment]
        window = [None if tick is None else tick * TICK for tick in (start, end)]
        return source.scan(window[0], window[1], limit)


def test_time_stamps_come_in_order_and_are_exactly_the_frames_that_will_be_shown(video: Path) -> None:
    found = scan(video, [packet(0), packet(8, 2), packet(4), packet(12), packet(None, 14, size=0)])
    assert found == Scan([0, 4, 8, 12], planned=True, head=(0, 0, 10), end=16)


@pytest.mark.parametrize(
    "second",
    [packet(8, is_corrupt=True), packet(0), packet(None, 8)],
    ids=["damaged", "the same time twice", "no presentation time"],
)
def test_packets_that_promise_nothing_are_decoded_one_after_the_other(video: Path, second: SimpleNamespace) -> None:
    found = scan(video, [packet(0), second, packet(12)])
    assert not found.planned
    assert found.ticks == [0, second.dts, 12]


def test_one_packet_says_nothing_of_how_long_it_is_shown(video: Path) -> None:
    assert scan(video, [packet(0)]) == Scan([0], planned=False, head=(0, 0, 10), end=4)


def test_a_packet_that_is_not_shown_is_where_decoding_begins_all_the_same(video: Path) -> None:
    found = scan(video, [packet(-4, is_discard=True), packet(0), packet(4)])
    assert found == Scan([0, 4], planned=True, head=(-4, -4, 10), end=8)


def test_a_window_is_read_to_its_end_in_decoding_order(video: Path) -> None:
    """A packet that is decoded at the end may be shown before it; one decoded later is shown later."""
    found = scan(video, [packet(0), packet(16, 8), packet(12, 12), packet(20, 13), packet(24, 14)], end=12)
    assert found.ticks == [0, 12, 16, 20]


def test_the_longest_source_is_measured_from_its_window(video: Path) -> None:
    packets = [packet(tick) for tick in range(0, 1101, 100)]
    assert len(scan(video, packets[:-1]).ticks) == 11
    with pytest.raises(SourceTooLong) as caught:
        scan(video, packets)
    assert caught.value.seconds == 11.0
    assert len(scan(video, packets, start=100).ticks) == 12


def test_decoding_begins_at_the_last_keyframe_until_the_window(video: Path) -> None:
    keys = [packet(tick, is_keyframe=tick in (0, 8, 16)) for tick in range(0, 25, 4)]
    assert scan(video, keys, start=11) == Scan([8, 12, 16, 20, 24], planned=True, head=(8, 8, 10), end=28)


def test_a_clock_that_restarts_is_counted_on_and_read_from_the_first_packet(video: Path) -> None:
    """Two recordings of three frames, of which the second begins at tick 4."""
    glued = [packet(tick, is_keyframe=tick in (0, 4)) for tick in (0, 4, 8, 4, 8, 12)]
    assert scan(video, glued, start=4) == Scan([4, 8, 12, 16, 20], planned=False, head=(0, 0, 10), end=24)


@pytest.mark.parametrize(("late", "planned"), [(16, True), (17, False)])
def test_times_further_out_of_order_than_a_decoder_holds_pictures_are_not_believed(
    video: Path, late: int, planned: bool
) -> None:
    order = [*range(1, late + 1), 0, *range(late + 1, 30)]
    assert scan(video, [packet(tick, dts) for dts, tick in enumerate(order)]).planned is planned


@pytest.mark.parametrize(("order", "top"), [(0, True), (1, True), (2, True), (3, False), (4, False), (5, True)])
def test_which_field_is_shown_first(order: int, top: bool) -> None:
    """libavcodec's AVFieldOrder: unknown, progressive, TT, BB, TB (top coded, bottom shown first), BT."""
    source = SimpleNamespace(codec=SimpleNamespace(field_order=order))
    assert VideoSource.top_first.fget(source) is top  # type: ignore[attr-defined]


@pytest.mark.parametrize(("start", "duration", "end"), [(140, 300, 4.4), (None, 300, 3.0), (140, None, None)])
def test_the_declared_end_counts_from_the_beginning(start: int | None, duration: int | None, end: float | None) -> None:
    stream, container = SimpleNamespace(start_time=start, duration=duration), SimpleNamespace(format=MP4)
    source = SimpleNamespace(stream=stream, container=container, time_base=TICK)
    assert VideoSource.declared_end.fget(source) == end  # type: ignore[attr-defined]


def test_only_the_lack_of_memory_is_no_damage() -> None:
    raise_if_out_of_memory(av.error.FFmpegError(errno.EINVAL, "invalid"))
    with pytest.raises(MemoryError):
        raise_if_out_of_memory(av.error.FFmpegError(errno.ENOMEM, "no memory"))


# --- from a plan to samples ------------------------------------------------------------------------------------------


def plan_of(lengths: list[int]) -> FramePlan:
    """Frames that are shown for so many sampling times each."""
    grid, frames, k = Grid(8, Fraction(0), None, Fraction(1, 8)), [], 0
    for length in lengths:
        frames.append((k, k + length, range(k, k + length)))
        k += length
    return FramePlan(grid, frames, Scan([tick for tick, *_ in frames], planned=True, head=(0, 0, 10), end=k))


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 1, 2, 1, 1, 1], [3], [2, 2], [1, 2, 1, 1, 2, 1], []])
def test_the_longest_run_is_that_between_two_breaks(lengths: list[int]) -> None:
    plan = plan_of(lengths)
    runs, run = [0], 0
    for tick, until, ks in plan.frames:
        for event in shown_once("picture", tick, until, ks, plan.grid, Fraction(1, 8)):
            run = 0 if isinstance(event, Break) else run + 1
            runs.append(run)
    assert plan.longest_run == max(runs)
    assert plan.samples == sum(lengths)


class Decoder:
    """A source whose decoder gives frames of these time stamps, one for each packet."""

    time_base = Fraction(1, 8)

    def __init__(self, order: list[int], corrupt: int | None = None) -> None:
        self.codec = SimpleNamespace(skip_frame="")
        self.order, self.corrupt = order, corrupt
        self.kept: list[str] = []

    def packets(self, start: Fraction | None, head: object) -> Iterator[Any]:
        for pts in self.order:
            frame = SimpleNamespace(pts=pts, is_corrupt=pts == self.corrupt)
            yield SimpleNamespace(pts=pts, size=10, decode=partial(self.decode, frame))

    def decode(self, frame: Any) -> list[Any]:
        self.kept.append(self.codec.skip_frame)
        return [frame]


def sampled(source: Decoder, plan: FramePlan) -> list[int]:
    events = planned_samples(source, plan, lambda frame: frame.pts)  # type: ignore[arg-type]
    return [event.picture for event in events if isinstance(event, ShownFrame)]


def test_frames_may_come_early_by_as_many_as_a_decoder_may_hold() -> None:
    """Sixteen (H.264 A.3.1); more would be held in memory without end, where the first one never comes."""
    plan = plan_of([1] * 20)
    assert sampled(Decoder([*range(1, 17), 0, *range(17, 20)]), plan) == list(range(20))
    with pytest.raises(PlanFailed):
        sampled(Decoder([*range(1, 18), 0, 18, 19]), plan)


def test_what_is_damaged_or_missing_fails_the_plan() -> None:
    plan = plan_of([1] * 4)
    for source in (Decoder([0, 1, 2, 3], corrupt=2), Decoder([0, 1, 2])):
        with pytest.raises(PlanFailed):
            sampled(source, plan)


def test_frames_that_nobody_wants_are_skipped() -> None:
    source, plan = Decoder([0, 1, 2, 3, 4]), plan_of([1] * 5)
    plan.frames = [item for item in plan.frames if item[0] % 2 == 0]
    assert sampled(source, plan) == [0, 2, 4]
    assert source.kept == ["DEFAULT", "NONREF", "DEFAULT", "NONREF", "DEFAULT"]

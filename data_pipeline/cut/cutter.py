"""Cuts one source video into exact, encoded clips: scan -> decode -> sample -> shots -> gates -> encode.

`cut_clips` is a pure function of the file's bytes, the window and the configuration: the same input gives the same
bytes. Every stretch of the source ends either in an `EncodedClip` or in a `Rejection`, which names the reason and the
values that were measured. Times are seconds on the file's own presentation timeline, as
`ffprobe -show_entries frame=pts_time` prints them.

Memory is bounded: the cutter holds the pictures of at most one clip and a rest (max_seconds + min_seconds), at stored
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av.error

from data_pipeline.cut.config import ClipConfig, Codec, Crop, Interlaced, Letterbox
from data_pipeline.cut.encode import encoder_version
from data_pipeline.cut.geometry import Resizer, displayed_size, size_problem
from data_pipeline.cut.letterbox import find_bars
from data_pipeline.cut.packet_times import PacketHead, Scan
from data_pipeline.cut.result import CutResult, EncodedClip, Measured, Rejection
from data_pipeline.cut.sampling import CUT_OFF, TRUNCATED, plan_samples, planned_samples
from data_pipeline.cut.sequential import BeginsLate, SequentialSamples
from data_pipeline.cut.shot_cutter import ShotCutter
from data_pipeline.cut.video import PlanFailed, SourceTooLong, UndecodableVideo, VideoSource
from data_pipeline.ffmpeg import describe, raise_if_out_of_memory

__all__ = [
    "ENCODER_VERSION",
    "ClipConfig",
    "Codec",
    "Crop",
    "CutResult",
    "EncodedClip",
    "Interlaced",
    "Letterbox",
    "Rejection",
    "UndecodableVideo",
    "cut_clips",
]

ENCODER_VERSION = encoder_version()
REFRESH = 10  # seconds before a window, at which decoding begins where its own keyframe shows nothing for a while


def cut_clips(
    path: str | Path, *, start: float | None = None, end: float | None = None, config: ClipConfig
) -> CutResult:
    """Cut one local video file, or its window [start, end) in seconds, into clips.

    A file with decode errors gives the clips of its clean stretches and a `damaged` rejection for each other stretch.
    When more than `config.max_damage` of the row is lost, it gives nothing and raises UndecodableVideo.

    Raises:
        UndecodableVideo: nothing that can be trusted comes out of the decoder; the row belongs in quarantine.
        MemoryError: the file needs more memory than this process may have.
    """
    window = tuple(None if t is None else Fraction(t).limit_denominator(1_000_000) for t in (start, end))
    try:
        with VideoSource(path) as source:
            return _Row(source, window[0], window[1], config).cut()
    except av.error.FFmpegError as error:
        raise_if_out_of_memory(error)
        raise UndecodableVideo(f"{Path(path).name}: {describe(error)}") from error


class _Row:
    """The steps of `cut_clips` on an open file."""

    def __init__(self, source: VideoSource, start: Fraction | None, end: Fraction | None, config: ClipConfig) -> None:
        self.source, self.start, self.end, self.config = source, start, end, config
        self.info = source.info
        self.resize = Resizer(config, source.sar, top_first=source.top_first, transfer=source.transfer)

    def cut(self) -> CutResult:
        source, config = self.source, self.config
        try:
            scan = source.scan(self.start, self.end, config.max_source_seconds)
            if not scan.ticks:
                raise UndecodableVideo(f"{source.path.name}: its packets carry no time stamps")
            first, last = (float(tick * source.time_base) for tick in (scan.ticks[0], scan.ticks[-1]))
            span = last - first
            self.info["fps"] = round((len(scan.ticks) - 1) / span, 4) if span > 0 else None
            refused = self._refused(scan)
            if refused is not None:
                beyond = (
                    self._missing_of_window(float(scan.end * source.time_base))
                    if refused.reason == "too_short"
                    else None
                )
                rejected = [refused] if beyond is None else [refused, beyond]
                return CutResult(clips=[], rejected=rejected, source=self.info)
            if self.config.letterbox is Letterbox.crop:
                self.resize.bars = find_bars(source, scan)
            cutter = self._planned(scan) if scan.planned else None
            cutter = cutter or self._sequential(scan)
        except SourceTooLong as error:
            rejection = Rejection(
                number=None,
                start=float(self.start or 0),
                end=float(self.start or 0) + error.seconds,
                reason="too_long",
                measured={"seconds": error.seconds},
            )
            return CutResult(clips=[], rejected=[rejection], source=self.info)
        self._note_missing_end(cutter, scan)
        self.info.update(self.resize.properties)
        return CutResult(clips=cutter.clips, rejected=cutter.rejected, source=self.info)

    def _note_missing_end(self, cutter: ShotCutter, scan: Scan) -> None:
        """Record what the header, the container or the window promises after the last frame."""
        declared, found = self.source.declared_end, float(scan.end * self.source.time_base)
        if self.end is not None:
            beyond = self._missing_of_window(found)
            if beyond is not None:
                cutter.reject(beyond.reason, beyond.start, beyond.end, beyond.measured)
        elif declared is not None and declared - found > TRUNCATED and not self.source.has_all(scan.packets):
            cutter.reject("truncated", found, declared, {"missing": declared - found})
        elif self.source.cut_off:
            end = max(found, self.info["duration"] or 0.0)  # of the whole file, sound included
            cutter.reject("truncated", found, end, {"error": CUT_OFF})

    def _missing_of_window(self, found: float) -> Rejection | None:
        """What the window asks for after the end of the source, which is at `found` seconds."""
        if self.end is None or float(self.end) - found <= TRUNCATED:
            return None
        missing: Measured = {"missing": float(self.end) - found, "source_end": found}
        return Rejection(number=None, start=found, end=float(self.end), reason="outside_source", measured=missing)

    def _stretch(self, scan: Scan) -> tuple[float, float]:
        """The window as far as there are frames, or the file without one, seconds."""
        first, last = (float(tick * self.source.time_base) for tick in (scan.ticks[0], scan.ticks[-1]))
        begin = max(first, float(self.start)) if self.start is not None else first
        return begin, min(last, float(self.end)) if self.end is not None else last

    def _refused(self, scan: Scan) -> Rejection | None:
        """The reason to refuse the whole row, when the header and the time stamps alone give one."""
        first, last = (float(tick * self.source.time_base) for tick in (scan.ticks[0], scan.ticks[-1]))
        begin, end = self._stretch(scan)
        if begin > last or (self.end is not None and self.end <= begin):
            # `first` is only where reading began, which for a late window is a keyframe in the middle
            opening = self.source.stream.start_time
            source_start = first if opening is None else min(first, float(opening * self.source.time_base))
            measured: Measured = {"source_start": source_start, "source_end": last}
            return Rejection(
                number=None,
                start=first if self.start is None else float(self.start),
                end=max(begin, last) if self.end is None else float(self.end),
                reason="outside_source",
                measured=measured,
            )
        size = (self.source.codec.width, self.source.codec.height)
        if min(size) > 0:
            problem = size_problem(
                *displayed_size(*size, self.source.sar, (1, 0, 0, 1)), size[0] * size[1], self.config
            )
            if problem:
                return Rejection(
                    number=None, start=begin, end=end, reason=problem.reason, measured=dict(problem.measured)
                )
        if scan.planned and (end - begin) * self.config.fps + 1 < self.config.min_frames:
            return Rejection(number=None, start=begin, end=end, reason="too_short", measured={"seconds": end - begin})
        return None

    def _planned(self, scan: Scan) -> ShotCutter | None:
        plan = plan_samples(self.source, scan, self.config.fps, self.start, self.end)
        cutter = ShotCutter(self.config)
        if plan.longest_run < self.config.min_frames <= plan.samples:
            gap = max(until - tick for tick, until, _ in plan.frames)
            measured: Measured = {"fps": self.info["fps"] or 0.0, "longest_gap": float(gap * self.source.time_base)}
            begin, end = self._stretch(scan)
            cutter.rejected.append(
                Rejection(number=None, start=begin, end=end, reason="fps_too_low", measured=measured)
            )
            return cutter
        try:
            cutter.run(planned_samples(self.source, plan, self.resize))
        except PlanFailed:
            return None
        return cutter

    def _sequential(self, scan: Scan) -> ShotCutter:
        opening = max(float(scan.ticks[0] * self.source.time_base), float(self.start or -1e9))
        for since, head, prompt in self._beginnings(scan):
            self.source.reopen()
            samples = SequentialSamples(
                self.source,
                self.config.fps,
                self.start,
                self.end,
                head=head,
                since=since,
                prompt=prompt,
                opening=opening,
                take=self.resize,
                max_seconds=self.config.max_source_seconds,
            )
            cutter = ShotCutter(self.config)
            with suppress(BeginsLate):
                cutter.run(samples)
                break
        name = self.source.path.name
        if not samples.frames:
            raise UndecodableVideo(f"{name}: no frame could be decoded: {samples.error or 'the stream is empty'}")
        if samples.lost > self.config.max_damage * max(samples.span, samples.lost):
            raise UndecodableVideo(
                f"{name}: {samples.lost:.2f} of {max(samples.span, samples.lost):.2f} s lost to decode errors, more "
                f"than clip.max_damage={self.config.max_damage}; first: {samples.error}"
            )
        return cutter

    def _beginnings(self, scan: Scan) -> Iterator[tuple[Fraction | None, PacketHead | None, bool]]:
        """Where decoding can begin, the cheapest way first: the time to seek to, the packet to begin with, and whether
        to go on to the next way where the window has no frame at its beginning.

        A decoder shows nothing after a keyframe that is a mere recovery point, until the picture has been refreshed in
        full (ITU-T H.264 D.2.8): the pictures of an encoder with periodic intra refresh need what lies before it.
        """
        source, start = self.source, self.start
        late = start is not None and not source.counted and scan.ticks[0] * source.time_base <= start
        yield start, None if source.indexed else scan.head, late
        if start is not None and late:
            earlier = start - REFRESH
            if earlier > 0:
                seconds = self.config.max_source_seconds + REFRESH
                yield earlier, None if source.indexed else source.scan(earlier, start, seconds).head, True
            yield None, None, False

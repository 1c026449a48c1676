"""One source video to exact, encoded clips: scan -> decode -> sample -> shots -> gates -> encode.

`cut_clips` is a pure function of the file's bytes, the window and the configuration: same input, same bytes out. Every
stretch of the source ends either in an `EncodedClip` or in a `Rejection` that names its reason and what was measured.
Times are seconds on the file's own presentation timeline, as `ffprobe -show_entries frame=pts_time` prints them.

Memory is bounded: the pictures of at most one clip and a rest (max_seconds + min_seconds) are held, at stored size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.bars import find_bars
from data_pipeline.clip_config import ClipConfig, Codec, Crop, Interlaced, Letterbox
from data_pipeline.encode import encode_pictures, encoder_version
from data_pipeline.filters import measure_pictures, perceptual_hash, picture_problem
from data_pipeline.geometry import Refused, Resizer, displayed_size, size_problem
from data_pipeline.sampling import Break, Plan, Sample, SequentialSamples, plan_samples, planned_samples
from data_pipeline.shots import LAG, CutDetector, Thumbnails
from data_pipeline.video import (
    PlanFailed,
    Scan,
    SourceTooLong,
    UndecodableVideo,
    VideoSource,
    describe,
    raise_if_out_of_memory,
)

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
TRUNCATED = 1.0  # seconds missing at the end, against the duration in the header, that are worth a record
Measured = dict[str, float | str]


@dataclass(kw_only=True)
class EncodedClip:
    """One accepted clip: frame k shows what the source shows at start + k / fps."""

    number: int  # position among all candidates of the row, accepted or not
    data: bytes  # the mp4
    start: float
    end: float  # start + frames / fps, or earlier where the last frame gives way to another shot or the source ends
    frames: int
    height: int
    width: int
    fps_error: float  # largest |source_pts[k] - (start + k / fps)|, seconds
    source_pts: list[float]  # presentation time of the source frame behind each stored frame, seconds
    measures: dict[str, float]  # what the gates measured
    phash: str  # 16 hex digits, for near-duplicates by Hamming distance


@dataclass(kw_only=True)
class Rejection:
    """One stretch of the source, or (number None) the entire row, that did not become a clip.

    Reasons of rows: too_long, outside_source, and too_short, too_small, too_large, aspect, fps_too_low when they hold
    for all of it. Of stretches: those and hdr, rotation, interlaced, damaged, truncated, black, letterbox, cut_inside,
    frozen, motion, encode_loss. Caption reasons come from `filters.caption_problem`.
    """

    number: int | None
    start: float
    end: float
    reason: str
    measured: Measured = field(default_factory=dict)


@dataclass(kw_only=True)
class CutResult:
    """Everything one row gave: clips and rejections, numbered together in order of time."""

    clips: list[EncodedClip]
    rejected: list[Rejection]
    source: dict[str, Any]  # width, height, duration, fps, codec, pixel_format, sar, container, rotation


def cut_clips(
    path: str | Path, *, start: float | None = None, end: float | None = None, config: ClipConfig
) -> CutResult:
    """Cut one local video file, or its window [start, end) in seconds, into clips.

    A file with decode errors gives the clips of its clean stretches, and a `damaged` rejection for each other stretch,
    as long as at most `config.max_damage` of it is lost.

    Raises:
        UndecodableVideo: nothing trustworthy can be decoded; the row belongs in quarantine.
        MemoryError: the process may not have the memory this file needs.
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
        self.resize = Resizer(config, source.sar, top_first=source.top_first)

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
                return CutResult(clips=[], rejected=[refused], source=self.info)
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
        declared = source.declared_end
        if self.end is None and declared is not None and declared - last > TRUNCATED:
            cutter.reject("truncated", last, declared, {"missing": declared - last})
        self.info.update(self.resize.seen)
        return CutResult(clips=cutter.clips, rejected=cutter.rejected, source=self.info)

    def _refused(self, scan: Scan) -> Rejection | None:
        """What the header and the time stamps alone are enough to refuse."""
        first, last = (float(tick * self.source.time_base) for tick in (scan.ticks[0], scan.ticks[-1]))
        begin = max(first, float(self.start)) if self.start is not None else first
        end = min(last, float(self.end)) if self.end is not None else last
        if begin > last or (self.end is not None and self.end <= begin):
            measured: Measured = {"source_start": first, "source_end": last}
            return Rejection(number=None, start=begin, end=end, reason="outside_source", measured=measured)
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

    def _planned(self, scan: Scan) -> _Cutter | None:
        plan: Plan = plan_samples(self.source, scan, self.config.fps, self.start, self.end)
        cutter = _Cutter(self.config)
        if plan.longest_run < self.config.min_frames <= plan.samples:
            gap = max(until - tick for tick, until, _ in plan.wanted)
            times = [float(t * self.source.time_base) for t in (scan.ticks[0], scan.ticks[-1], gap)]
            measured: Measured = {"fps": self.info["fps"] or 0.0, "longest_gap": times[2]}
            cutter.rejected.append(
                Rejection(number=None, start=times[0], end=times[1], reason="fps_too_low", measured=measured)
            )
            return cutter
        try:
            cutter.run(planned_samples(self.source, plan, self.resize))
        except PlanFailed:
            return None
        return cutter

    def _sequential(self, scan: Scan) -> _Cutter:
        self.source.reopen()
        opening = max(float(scan.ticks[0] * self.source.time_base), float(self.start or -1e9))
        samples = SequentialSamples(
            self.source,
            self.config.fps,
            self.start,
            self.end,
            opening=opening,
            take=self.resize,
            max_seconds=self.config.max_source_seconds,
        )
        cutter = _Cutter(self.config)
        cutter.run(samples)
        name = self.source.path.name
        if not samples.frames:
            raise UndecodableVideo(f"{name}: no frame could be decoded: {samples.error or 'the stream is empty'}")
        if samples.lost > self.config.max_damage * max(samples.span, samples.lost):
            raise UndecodableVideo(
                f"{name}: {samples.lost:.2f} of {max(samples.span, samples.lost):.2f} s lost to decode errors, more "
                f"than clip.max_damage={self.config.max_damage}; first: {samples.error}"
            )
        return cutter


@dataclass
class _Shot:
    """Samples since the last cut or break. `changes[i]` is the picture change from sample i - 1 to i."""

    samples: list[Sample[av.VideoFrame]] = field(default_factory=list)
    thumbnails: list[NDArray[np.uint8]] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    after_gap: bool = False

    def split(self, count: int) -> _Shot:
        """Take the first `count` samples away as a shot of their own."""
        head = _Shot(self.samples[:count], self.thumbnails[:count], self.changes[:count], self.after_gap)
        del self.samples[:count], self.thumbnails[:count], self.changes[:count]
        self.after_gap = False
        return head


class _Cutter:
    """Samples and breaks in, clips and rejections out."""

    def __init__(self, config: ClipConfig) -> None:
        self.config = config
        self.clips: list[EncodedClip] = []
        self.rejected: list[Rejection] = []
        self._number = 0
        self._thumbnails = Thumbnails()
        self._shot = _Shot()
        self._seen = 0  # samples shown to the cut detector
        self._detector = self._new_detector()
        self._refused: tuple[Refused, float, float] | None = None

    def run(self, events: Iterable[Sample[av.VideoFrame | Refused] | Break]) -> None:
        """Consume all events and finish."""
        for event in events:
            if isinstance(event, Break):
                gap = event.reason == "fps_too_low"
                self._end_shot(before_gap=gap)
                self.reject(event.reason, event.start, event.end, event.measured)
                self._shot.after_gap = gap
            elif isinstance(event.picture, Refused):
                self._refuse(event.picture, event.time)
            else:
                self._add(Sample(event.time, event.pts, event.until, event.picture))
        self._end_shot()

    def reject(self, reason: str, start: float, end: float, measured: Measured) -> None:
        """Record a stretch; neighbouring stretches too slow for the target rate become one."""
        last = self.rejected[-1] if self.rejected else None
        if last and last.reason == reason == "fps_too_low" and last.number == self._number - 1:
            last.end = end
            last.measured["gap"] = max(float(last.measured["gap"]), float(measured["gap"]))
            return
        self.rejected.append(Rejection(number=self._number, start=start, end=end, reason=reason, measured=measured))
        self._number += 1

    def _refuse(self, refused: Refused, time: float) -> None:
        if self._refused is None or self._refused[0] != refused:
            self._end_shot()
            self._refused = (refused, time, time)
        self._refused = (refused, self._refused[1], time + 1 / self.config.fps)

    def _add(self, sample: Sample[av.VideoFrame]) -> None:
        held = self._shot.samples
        size = (sample.picture.width, sample.picture.height)
        if self._refused or (held and size != (held[-1].picture.width, held[-1].picture.height)):
            self._end_shot()
        thumbnail = self._thumbnails(sample.picture)
        cuts = self._detector.add(thumbnail)
        self._seen += 1
        self._shot.samples.append(sample)
        self._shot.thumbnails.append(thumbnail)
        self._shot.changes.append(self._detector.change)
        for cut in cuts:
            self._finish(self._shot.split(len(held) - (self._seen - cut)))
        while len(held) >= self.config.max_frames + max(self.config.min_frames, LAG):
            self._close(self._shot.split(self.config.max_frames), final=False)

    def _end_shot(self, *, before_gap: bool = False) -> None:
        """End the shot at a break or at the end; the next begins without memory of it."""
        if self._refused is not None:
            refused, start, end = self._refused
            self._refused = None
            self.reject(refused.reason, start, end, dict(refused.measured))
        for cut in self._detector.flush():
            self._finish(self._shot.split(len(self._shot.samples) - (self._seen - cut)))
        self._finish(self._shot, before_gap=before_gap)
        self._shot, self._detector, self._seen = _Shot(), self._new_detector(), 0

    def _finish(self, shot: _Shot, *, before_gap: bool = False) -> None:
        """Close a shot that is complete, in two halves if it is too long for one clip."""
        if len(shot.samples) > self.config.max_frames:
            self._close(shot.split(len(shot.samples) // 2), final=False)
        if shot.samples:
            self._close(shot, final=True, before_gap=before_gap)

    def _new_detector(self) -> CutDetector:
        return CutDetector(self.config.fps, self.config.cut_ratio, self.config.cut_change)

    def _close(self, shot: _Shot, *, final: bool, before_gap: bool = False) -> None:
        """Judge and encode one candidate. `final`: the shot ends with it."""
        config, samples = self.config, shot.samples
        start, count = samples[0].time, len(samples)
        end = start + count / config.fps
        if final:
            end = max(samples[-1].time, min(end, samples[-1].until))
        if count < config.min_frames:
            if before_gap or shot.after_gap:
                self.reject("fps_too_low", start, end, {"gap": 1 / config.fps})
            else:
                self.reject("too_short", start, end, {"seconds": count / config.fps})
            return
        grey = np.stack([cv2.cvtColor(thumbnail, cv2.COLOR_BGR2GRAY) for thumbnail in shot.thumbnails])
        measures = measure_pictures(grey, shot.changes[1:])
        reason = picture_problem(measures, config)
        if reason:
            self.reject(reason, start, end, dict(measures))
            return
        pictures = [sample.picture for sample in samples]
        encoded = encode_pictures(pictures, config)
        measures |= {"psnr": encoded.psnr, "worst_psnr": encoded.worst_psnr}
        if encoded.psnr < config.min_psnr:
            self.reject("encode_loss", start, end, dict(measures))
            return
        pts = [sample.pts for sample in samples]
        self.clips.append(
            EncodedClip(
                number=self._number,
                data=encoded.data,
                start=start,
                end=end,
                frames=count,
                height=pictures[0].height,
                width=pictures[0].width,
                fps_error=max(abs(sample.pts - sample.time) for sample in samples),
                source_pts=pts,
                measures={name: round(value, 4) for name, value in measures.items()},
                phash=perceptual_hash(grey),
            )
        )
        self._number += 1

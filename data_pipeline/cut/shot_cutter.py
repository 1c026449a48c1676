"""From samples to clips: the cutter ends a shot at each cut or break, splits long shots, asks the gates and encodes.

It holds the pictures of at most one clip and a rest (max_seconds + min_seconds), at stored size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cut_detector import LAG, CutDetector, Thumbnails
from data_pipeline.cut.encode import encode_pictures
from data_pipeline.cut.gates import measure_pictures, perceptual_hash, picture_problem
from data_pipeline.cut.geometry import ClipRefused
from data_pipeline.cut.result import EncodedClip, Measured, Rejection
from data_pipeline.cut.sampling import Break, ShownFrame


@dataclass
class Shot:
    """The samples since the last cut or break. `changes[i]` is the picture change from sample i - 1 to sample i."""

    samples: list[ShownFrame[av.VideoFrame]] = field(default_factory=list)
    thumbnails: list[NDArray[np.uint8]] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    after_gap: bool = False

    def split(self, count: int) -> Shot:
        """Remove the first `count` samples and return them as a shot of their own."""
        head = Shot(self.samples[:count], self.thumbnails[:count], self.changes[:count], self.after_gap)
        del self.samples[:count], self.thumbnails[:count], self.changes[:count]
        self.after_gap = False
        return head


class ShotCutter:
    """Takes samples and breaks, and makes `clips` and `rejected`, numbered together in order of time."""

    def __init__(self, config: ClipConfig) -> None:
        self.config = config
        self.clips: list[EncodedClip] = []
        self.rejected: list[Rejection] = []
        self._number = 0
        self._thumbnails = Thumbnails()
        self._shot = Shot()
        self._examined = 0  # samples that the cut detector got since the shot began
        self._detector = self._new_detector()
        self._refused: tuple[ClipRefused, float, float] | None = None

    def run(self, events: Iterable[ShownFrame[av.VideoFrame | ClipRefused] | Break]) -> None:
        """Take all samples and breaks of a source, and end the last shot."""
        for event in events:
            if isinstance(event, Break):
                gap = event.reason == "fps_too_low"
                self._end_shot(before_gap=gap)
                self.reject(event.reason, event.start, event.end, event.measured)
                self._shot.after_gap = gap
            elif isinstance(event.picture, ClipRefused):
                self._refuse(event.picture, event.time)
            else:
                self._add(ShownFrame(event.time, event.pts, event.until, event.picture))
        self._end_shot()

    def reject(self, reason: str, start: float, end: float, measured: Measured) -> None:
        """Record the rejection of a stretch. Neighbouring stretches that are both too slow become one rejection."""
        last = self.rejected[-1] if self.rejected else None
        if last and last.reason == reason == "fps_too_low" and last.number == self._number - 1:
            last.end = end
            last.measured["gap"] = max(float(last.measured["gap"]), float(measured["gap"]))
            return
        self.rejected.append(Rejection(number=self._number, start=start, end=end, reason=reason, measured=measured))
        self._number += 1

    def _refuse(self, refused: ClipRefused, time: float) -> None:
        if self._refused is None or self._refused[0] != refused:
            self._end_shot()
            self._refused = (refused, time, time)
        self._refused = (refused, self._refused[1], time + 1 / self.config.fps)

    def _add(self, sample: ShownFrame[av.VideoFrame]) -> None:
        held = self._shot.samples
        size = (sample.picture.width, sample.picture.height)
        if self._refused or (held and size != (held[-1].picture.width, held[-1].picture.height)):
            self._end_shot()
        thumbnail = self._thumbnails(sample.picture)
        cuts = self._detector.add(thumbnail)
        self._examined += 1
        self._shot.samples.append(sample)
        self._shot.thumbnails.append(thumbnail)
        self._shot.changes.append(self._detector.change)
        for cut in cuts:
            self._finish(self._shot.split(len(held) - (self._examined - cut)))
        while len(held) >= self.config.max_frames + max(self.config.min_frames, LAG):
            self._close(self._shot.split(self.config.max_frames), final=False)

    def _end_shot(self, *, before_gap: bool = False) -> None:
        """End the shot at a break or at the end of the source. The next shot begins with a new detector."""
        if self._refused is not None:
            refused, start, end = self._refused
            self._refused = None
            self.reject(refused.reason, start, end, dict(refused.measured))
        for cut in self._detector.flush():
            self._finish(self._shot.split(len(self._shot.samples) - (self._examined - cut)))
        self._finish(self._shot, before_gap=before_gap)
        self._shot, self._detector, self._examined = Shot(), self._new_detector(), 0

    def _finish(self, shot: Shot, *, before_gap: bool = False) -> None:
        """Close a complete shot, in two halves if it is too long for one clip."""
        if len(shot.samples) > self.config.max_frames:
            self._close(shot.split(len(shot.samples) // 2), final=False)
        if shot.samples:
            self._close(shot, final=True, before_gap=before_gap)

    def _new_detector(self) -> CutDetector:
        return CutDetector(self.config.fps, self.config.cut_ratio, self.config.cut_change)

    def _close(self, shot: Shot, *, final: bool, before_gap: bool = False) -> None:
        """Judge and encode one candidate for a clip.

        Args:
            final: whether the shot ends with this candidate.
            before_gap: whether a stretch follows in which the source is too slow.
        """
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

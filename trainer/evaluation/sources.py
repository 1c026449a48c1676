"""Sources of the windows that are measured: what a source is, and video files (shard_source.py has datasets).

A window is T consecutive sampled frames. Windows do not overlap. The frames that are left at the end of a video are
counted and reported, and not padded, because a repeated frame would be measured as if it were real. (The official
script repeats the last frame.)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from data_pipeline.cut.frames import Break, NumberedFrame, break_text
from data_pipeline.cut.isolated_frames import IsolatedFrames
from data_pipeline.store.counted import counted
from trainer.evaluation.draws import Draw, drawn_start
from trainer.evaluation.found_videos import FoundVideos
from trainer.evaluation.squares import square_of

_PAPER_RATE = 25.0  # frames a second at which the paper measures
_NAMED = 3  # stretches of a video that the reason names


@dataclass
class Window:
    """One window to reconstruct and measure."""

    video: Tensor  # [3, T, S, S] in [0, 1]
    source: str  # name of the video or clip
    start: int  # number of its first frame among the frames that the source shows
    interval: int  # source frames from one window frame to the next
    fps: float  # frames a second of the window itself


@dataclass
class Totals:
    """What was read and what was left out. It is filled while windows are drawn."""

    sources: int = 0  # videos or clips that gave a window
    windows: int = 0
    left_out_frames: int = 0  # sampled frames behind the last whole window of each source
    failed: list[tuple[str, str]] = field(default_factory=list)  # source, reason
    remarks: list[str] = field(default_factory=list)  # what else a reader of the results should know


@dataclass(frozen=True)
class Part:
    """Windows that are read one after another, such as those of one video.

    Attributes:
        name: of the video, or the numbers of the windows; no two parts of a source have the same.
        identity: a text that changes where the pixels of the windows change.
        size: how long the part takes in comparison with others, in bytes or windows.
    """

    name: str
    identity: str
    size: float


class WindowSource(Protocol):
    """The windows that are measured, in parts that can be read in any order and by different processes.

    Attributes:
        settings: what decides which windows there are, as option -> value; the parts' identities are made of it.
    """

    settings: Mapping[str, Any]

    def describe(self) -> str:
        """The source in one line, for the result table."""
        ...

    def parts(self) -> list[Part]:
        """All parts, in a fixed order."""
        ...

    def read(self, part: Part, totals: Totals) -> Iterator[Window]:
        """The windows of a part, in a fixed order; `totals` gets what was read, and what could not be."""
        ...

    def whole(self) -> Totals:
        """What is known of all parts together before they are read."""
        ...

    def close(self) -> None:
        """End what reading has started in this thread; parts can be read again."""
        ...

    def interrupt(self) -> None:
        """End the processes for which other threads wait while they read, so that these threads go on with an error."""
        ...


def sampling_interval(fps: float) -> int:
    """n, if every n-th frame is used: round(fps / 25), at least 1. So the rate stays near the paper's 25 fps."""
    return max(1, round(fps / _PAPER_RATE))


class _Decoders(threading.local):
    """The process that decodes for a thread; each thread that reads has one of its own.

    Args:
        every: gets those of all threads.
    """

    def __init__(self, every: list[IsolatedFrames]) -> None:
        self.own = IsolatedFrames()
        every.append(self.own)


class VideoFiles:
    """Windows of video files at their native rate."""

    def __init__(
        self,
        videos: FoundVideos,
        frames: int,
        size: int,
        interval: int | None = None,
        max_windows: int | None = None,
        draw: Draw | None = None,
    ) -> None:
        """
        Args:
            videos: as `find_videos` finds them.
            frames: T, frames a window.
            size: side in pixels of the square to which a window is cut.
            interval: use every interval-th frame; None: `sampling_interval` of the video's frame rate.
            max_windows: at most so many windows of each video.
            draw: take one window at a random place of each of the first videos, and not all of them.
        """
        self._found = videos
        names = dict(videos)  # a video that is listed twice is measured once
        self._paths = names if draw is None else dict(islice(names.items(), draw.items))
        self._frames, self._size, self._draw = frames, size, draw
        self._interval, self._max_windows = interval, max_windows
        self.settings: Mapping[str, Any] = {
            "frames": frames,
            "size": size,
            "interval": interval,
            "max_windows": max_windows,
        } | ({} if draw is None else {"draw": asdict(draw)})
        self._every_decoder: list[IsolatedFrames] = []
        self._decoders = _Decoders(self._every_decoder)
        self.totals = Totals()

    def describe(self) -> str:
        """The source in one line."""
        if self._draw is not None:
            return (
                f"{counted(len(self._paths), 'video')}, of each one {self._frames}-frame window drawn with seed "
                f"{self._draw.seed}, {self._size}x{self._size}"
            )
        rate = "native rate, interval round(fps/25)" if self._interval is None else f"every {self._interval}. frame"
        return f"{counted(len(self._paths), 'video')}, {self._frames}-frame windows, {rate}, {self._size}x{self._size}"

    def windows(self) -> Iterator[Window]:
        """Windows, one video after the other. `totals` names each video that cannot be read, or not all of it."""
        self.totals = self.whole()
        with closing(self):
            for part in self.parts():
                yield from self.read(part, self.totals)

    def parts(self) -> list[Part]:
        """One part for each video. A file counts as another one when its size or its time of change differs."""
        found = []
        for name, path in self._paths.items():
            said = path.stat() if path.exists() else None  # a missing file is named when it is read
            told = [name, said and said.st_size, said and said.st_mtime_ns, self.settings]
            found.append(Part(name, json.dumps(told), said.st_size if said else 0))
        return found

    def whole(self) -> Totals:
        """What was found beside the videos."""
        return Totals(failed=list(self._found.failed), remarks=[self._found.remark] if self._found.remark else [])

    def close(self) -> None:
        """End the process that decodes for this thread."""
        self._decoders.own.close()

    def interrupt(self) -> None:
        """See `WindowSource`."""
        for decoder in list(self._every_decoder):
            decoder.kill()

    def read(self, part: Part, totals: Totals) -> Iterator[Window]:
        """The windows of one video, which another process decodes.

        `totals` names the video where it cannot be read to its end, also because its decoder crashed.
        """
        count = 0
        path = self._paths[part.name]
        windows = self._windows_of if self._draw is None else self._drawn_of
        for window in windows(part.name, path, totals):
            count += 1
            totals.sources += count == 1
            totals.windows += 1
            yield window
        if not count and not any(failed == part.name for failed, _ in totals.failed):
            totals.failed.append((part.name, f"shorter than one window of {self._frames} sampled frames"))

    def _drawn_of(self, name: str, path: Path, totals: Totals) -> Iterator[Window]:
        """The window that is drawn: one pass counts the frames, and another one takes those of the window."""
        assert self._draw is not None
        gaps: list[str] = []
        try:
            with self._decoders.own.open(path) as reader:
                interval = self._interval or sampling_interval(float(reader.fps))
                stretches = _stretches(reader.frames(interval, lambda pixels: None), gaps)
            first = drawn_start(self._draw, name, stretches, self._frames)
            if first is not None:
                with self._decoders.own.open(path) as reader:
                    events = reader.frames(interval, square_of(self._size))
                    shown = (frame for frame in events if not isinstance(frame, Break))
                    taken = list(islice(shown, first, first + self._frames))
                if len(taken) < self._frames:
                    raise ValueError("gave fewer frames when it was read again; measure it when no program changes it")
                video = torch.stack([frame.picture for frame in taken], dim=1)
                yield Window(video, name, taken[0].number, interval, float(reader.fps / Fraction(interval)))
        except ValueError as error:
            gaps.append(str(error).removeprefix(f"{path.name}: "))  # the entry names the file already
        _name(name, gaps, totals)

    def _windows_of(self, name: str, path: Path, totals: Totals) -> Iterator[Window]:
        held: list[Tensor] = []
        gaps: list[str] = []
        start = made = 0
        try:
            with self._decoders.own.open(path) as reader:
                interval = self._interval or sampling_interval(float(reader.fps))
                for frame in reader.frames(interval, square_of(self._size)):
                    if isinstance(frame, Break):  # no window reaches across frames that are missing
                        gaps.append(break_text(frame))
                        totals.left_out_frames += len(held)
                        held = []
                        continue
                    start = start if held else frame.number
                    held.append(frame.picture)
                    if len(held) == self._frames:
                        video = torch.stack(held, dim=1)
                        yield Window(video, name, start, interval, float(reader.fps / Fraction(interval)))
                        held = []
                        made += 1
                        if made == self._max_windows:
                            break
        except ValueError as error:
            gaps.append(str(error).removeprefix(f"{path.name}: "))  # the entry names the file already
        _name(name, gaps, totals)
        totals.left_out_frames += len(held)


def _name(video: str, gaps: list[str], totals: Totals) -> None:
    """Name a video of which not all could be read, with the first stretches that could not."""
    if gaps:
        more = f"; and {counted(len(gaps) - _NAMED, 'other stretch', 'other stretches')}"
        totals.failed.append((video, "; ".join(gaps[:_NAMED]) + (more if len(gaps) > _NAMED else "")))


def _stretches(frames: Iterable[NumberedFrame[None] | Break], gaps: list[str]) -> list[range]:
    """The frames between breaks, by their places among all frames; `gaps` gets the breaks in words."""
    found = [range(0)]
    for frame in frames:
        end = found[-1].stop
        if isinstance(frame, Break):
            found.append(range(end, end))
            gaps.append(break_text(frame))
        else:
            found[-1] = range(found[-1].start, end + 1)
    return found

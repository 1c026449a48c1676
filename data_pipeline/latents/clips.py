"""Reads the clips that a unit of latents is made of: from a source shard to the pixels of a clip's windows.

Layouts: T frames of a window, F decoded frames of a clip, S side of the square.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.tar import ClipError, parse_members
from data_pipeline.latents.packing import SourceClip, Window
from data_pipeline.latents.segments import PlannedClip, planned_clip
from data_pipeline.latents.windows import window_span, windows_of
from data_pipeline.outside.documents import parse_json
from data_pipeline.outside.regular import opened_descriptor
from data_pipeline.read.clip_decoder import Uint8Array, View, ViewDecoder
from data_pipeline.read.sample_reader import centred_square
from data_pipeline.store.base import Store

TOO_SHORT, TOO_SMALL = "too_short", "too_small"
"""Reasons of clips that have fewer frames than a window, or fewer pixels than the model's square."""
DAMAGED, UNDECODABLE = "damaged", "undecodable"
"""Errors of clips whose bytes are not those of the index, and of clips that the decoder cannot read."""


class ShardReader:
    """Ranges of bytes of one local shard file; several threads may read at once."""

    def __init__(self, path: Path) -> None:
        self._descriptor = opened_descriptor(path)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer where the file ends."""
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


@contextmanager
def opened_shard(store: Store, key: str, scratch: Path) -> Iterator[ShardReader]:
    """A shard of the source. That of a remote store is downloaded first, and removed at the end of the block.

    Raises:
        FileNotFoundError: the store does not have it.
    """
    path = store.local_path(key)
    downloaded = path is None
    if path is None:
        path = scratch / "source.tar"
        store.read_to_file(key, path)
    reader = ShardReader(path)
    try:
        yield reader
    finally:
        reader.close()
        if downloaded:
            path.unlink()


@dataclass(frozen=True)
class DecodedClip:
    """One clip and the frames that its windows are cut from."""

    clip: SourceClip
    windows: list[Window]
    begin: int  # stored frame of the first decoded one
    frames: Uint8Array  # [3, F, S, S]
    settings: Mapping[str, Any]  # of the windows

    def pixels(self, window: Window) -> Uint8Array:
        """RGB frames [3, T, S, S] of a window, which share the memory of the decoded ones."""
        first, stride = window.first_frame - self.begin, self.settings["frame_stride"]
        found = self.frames[:, first : first + window_span(self.settings) : stride]
        return found[..., ::-1] if window.mirrored else found


class ClipReader:
    """Reads and decodes the clips of one unit. Several threads may call it at once.

    Args:
        shard: the source shard.
        settings: of the windows, as the plan has them.
        fps: frames a second of the clips.
    """

    def __init__(self, shard: ShardReader, settings: Mapping[str, Any], fps: Fraction) -> None:
        self._shard, self._settings, self._fps = shard, settings, fps

    def read(self, row: PlanRow) -> DecodedClip | RowFate:
        """The clip of a row of the plan with its windows, or its fate when it gives none.

        Raises:
            OSError: the shard cannot be read.
        """
        planned = planned_clip(row)
        side, span = self._settings["image_size"], window_span(self._settings)
        if planned.frames < span:
            return RowFate.rejected(row, TOO_SHORT, {"frames": planned.frames, "needed": span})
        if not self._settings["resize"] and min(planned.height, planned.width) < side:
            return RowFate.rejected(row, TOO_SMALL, {"height": planned.height, "width": planned.width, "needed": side})
        raw = self._shard.read(planned.offset, planned.size)
        if len(raw) != planned.size or zlib.crc32(raw) != planned.crc32:
            return RowFate.quarantined(row, DAMAGED, f"{row.video}: the clip has another checksum than in the index")
        if planned.frames > len(raw):  # a frame takes a byte at least; so many windows would only take memory
            detail = f"{row.video}: the index says that the clip has {planned.frames} frames, in {len(raw)} bytes"
            return RowFate.quarantined(row, DAMAGED, detail)
        try:
            video, clip = source_clip(row.row, planned, raw)
        except ClipError as error:
            return RowFate.quarantined(row, DAMAGED, f"{row.video}: the clip {error}")
        windows = windows_of(self._settings, planned.key, planned.frames)
        begin, end = windows[0].first_frame, windows[-1].first_frame + span
        frames = np.empty((3, end - begin, side, side), np.uint8)
        try:
            ViewDecoder(self._fps).decode(video, self._view(planned, begin), frames)
        except ClipError as error:
            return RowFate.quarantined(row, UNDECODABLE, f"{row.video}: the clip {error}")
        return DecodedClip(clip, windows, begin, frames, self._settings)

    def _view(self, clip: PlannedClip, begin: int) -> View:
        """The square in the middle, as evaluation takes it, and every frame from `begin` on."""
        size, resize = self._settings["image_size"], self._settings["resize"]
        top, left, side = centred_square(size, resize, clip.height, clip.width)
        return View(begin, 1, top, left, side, flip=False)


def source_clip(row: int, planned: PlannedClip, raw: bytes) -> tuple[bytes, SourceClip]:
    """The mp4 of a clip, and what the latents of the clip remember of it.

    Args:
        row: number in the plan of the latents.
        raw: the bytes of the clip's sample.
    Raises:
        ClipError: members are missing, or the description or the caption cannot be read.
    """
    members = parse_members(raw, planned.key)
    if missing := {"json", "mp4", "txt"} - members.keys():
        raise ClipError(f"has no {' and no '.join(sorted(missing))}")
    try:
        description = parse_json(members["json"])
        if not isinstance(description, dict):
            raise ValueError("it is no JSON object")
        members["txt"].decode()
    except ValueError as error:
        raise ClipError(f"has a description or a caption that cannot be read: {error}") from error
    return members["mp4"], SourceClip(
        row=row,
        key=planned.key,
        sha256=hashlib.sha256(members["mp4"]).hexdigest(),
        crc32=planned.crc32,
        caption=members["txt"],
        description=description,
        start=planned.start,
        label=planned.label,
        split=planned.split,
        phash=planned.phash,
    )

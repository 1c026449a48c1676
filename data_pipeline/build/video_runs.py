"""Finds the adjacent rows of one video in a manifest, and whether those of a video may not all stand beside each other.

Memory stays bounded for any number of rows: the positions lie on local disk, and so do the hashes of the videos, of
which one partition at a time is looked at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.build.hashes import HashFiles, repeated, text_hashes


class VideoRuns:
    """The runs of adjacent rows with the same video.

    Args:
        folder: for the files; the caller removes it.
        base: folder or address that relative videos start from.
    """

    def __init__(self, folder: Path, base: str) -> None:
        self._path = folder / "video-starts"
        self._remote_base = "://" in base
        self._hashes = HashFiles(folder, "videos")
        self._rows = 0
        self._last = pa.array([None], pa.string())
        self._file = self._path.open("wb")

    def add(self, rows: pa.Table) -> None:
        """Take the next rows: at least one, with the columns of ROW_SCHEMA."""
        videos = rows.column("video").combine_chunks()
        before = pa.concat_arrays([self._last, videos.slice(0, len(videos) - 1)])
        starts = np.flatnonzero(pc.fill_null(pc.not_equal(videos, before), True).to_numpy(zero_copy_only=False))
        (starts + self._rows).astype(np.int64).tofile(self._file)
        first = videos.take(pa.array(starts))
        self._hashes.add(text_hashes(first if self._remote_base else first.filter(pc.match_substring(first, "://"))))
        self._last = videos.slice(len(videos) - 1)
        self._rows += len(videos)

    def copied(self, video: str) -> bool:
        """Whether a video lies elsewhere, so that a fetch makes a copy."""
        return self._remote_base or "://" in video

    def close(self) -> None:
        """All rows have been added."""
        self._file.close()
        self._hashes.close()

    @property
    def starts(self) -> np.ndarray:
        """Positions of the rows whose video differs from the one before: int64, ascending, from 0. They lie on disk."""
        return np.memmap(self._path, np.int64, "r")

    def several(self) -> np.ndarray:
        """Hashes of the videos from elsewhere that have several runs of rows: int64, ascending.

        Not every run needs its video.
        """
        return np.sort(np.concatenate([repeated(hashes) for hashes in self._hashes.partitions()]))

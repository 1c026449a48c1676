"""Gives every source video as a local file. `s3://` and `http(s)://` sources are copied to a file of bounded size.

An unusable source raises `SourceProblem`, whose slug becomes the row's error in the ledger. A store that cannot be
reached raises `StoreError` instead: the unit fails and is built again later, because the row is not at fault.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.http import HttpProblem, download
from data_pipeline.source.twins import existing
from data_pipeline.store.base import Store
from data_pipeline.store.open import open_store


class SourceProblem(Exception):
    """A source cannot be used. `error` is a stable slug: missing, forbidden, unreachable, too_large, ..."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error
        self.detail = detail


class Sources:
    """Fetches the videos of one manifest."""

    def __init__(self, base: str, config: SourcesConfig) -> None:
        """
        Args:
            base: folder or s3://bucket/prefix that relative paths start from.
            config: limits of a download.
        """
        self.base = base
        self.config = config
        self._stores: dict[str, Store] = {}

    def fetch(self, video: str, folder: Path) -> Path:
        """A local file with the bytes of `video`: the source itself when it is a local file, else a copy in `folder`.

        Raises:
            SourceProblem: the source is missing or cannot be used.
            StoreError: every try to reach S3 failed.
        """
        if "://" not in video and "://" in self.base:
            video = f"{self.base}/{video}"
        if "://" not in video:
            return self._local(video)
        target = folder / f"source-{secrets.token_hex(4)}{_suffix(video)}"
        if video.startswith("s3://"):
            self._from_s3(video, target)
        else:
            try:
                download(video, target, self.config)
            except HttpProblem as problem:
                raise SourceProblem(problem.error, str(problem)) from problem
        return target

    def _local(self, video: str) -> Path:
        path = existing(Path(self.base, video))
        if self.config.untrusted and not path.resolve().is_relative_to(Path(self.base).resolve()):
            raise SourceProblem("forbidden", "lies outside the manifest's folder, which sources.untrusted=true refuses")
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise SourceProblem("not_a_file", "is a folder or a device")
            if not os.access(path, os.R_OK):
                raise PermissionError
        except FileNotFoundError:
            raise SourceProblem("missing", "there is no such file") from None
        except PermissionError:
            raise SourceProblem("forbidden", "may not be read") from None
        except (OSError, ValueError) as error:
            raise SourceProblem("missing", f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
        self._check_size(status.st_size)
        return path

    def _from_s3(self, video: str, target: Path) -> None:
        bucket, _, key = video.removeprefix("s3://").partition("/")
        store = self._stores.get(bucket)
        if store is None:
            store = self._stores[bucket] = open_store(f"s3://{bucket}", self.config.retries)
        try:
            self._check_size(store.size(key))
            store.read_to_file(key, target)
        except FileNotFoundError:
            raise SourceProblem("missing", "there is no such object") from None
        except PermissionError as error:
            raise SourceProblem("forbidden", "the store refused access") from error
        except ValueError as error:
            raise SourceProblem("missing", "is not a usable key") from error

    def _check_size(self, size: int) -> None:
        if size > self.config.max_bytes:
            raise SourceProblem("too_large", f"has {size} bytes, sources.max_bytes is {self.config.max_bytes}")
        if size == 0:
            raise SourceProblem("empty", "has no bytes")


def _suffix(video: str) -> str:
    """The file name's suffix, or "" for an unusual one. Some demuxers need the suffix."""
    suffix = os.path.splitext(video.split("?")[0].split("#")[0])[1]
    return suffix if suffix[1:].isalnum() and len(suffix) <= 6 else ""

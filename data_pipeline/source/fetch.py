"""Gives every source video as a local file. `s3://` and `http(s)://` sources are copied to a file of bounded size.

An unusable source raises `SourceProblem`, whose slug becomes the row's error in the ledger. Where this machine is the
cause (its credentials, a mount, a disk), `MachineTrouble` is raised, and where a store cannot be reached, `StoreError`:
the unit is built again later, because the row is not at fault.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.outside.regular import NotRegular, Outside, check_regular
from data_pipeline.raw_video import RAW_SUFFIX, is_raw, raw_ending
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.deadline import Deadline, Overdue, within
from data_pipeline.source.http import download
from data_pipeline.source.http_problem import HttpProblem
from data_pipeline.source.not_video import what_it_is
from data_pipeline.source.trouble import (
    MACHINE_ERRORS,
    FolderProbe,
    MachineTrouble,
    check_readable,
    names_a_system_error,
)
from data_pipeline.source.twins import existing
from data_pipeline.store.base import CredentialsRefused, NotConfigured, RequestRefused
from data_pipeline.store.open import open_bucket

if TYPE_CHECKING:
    from data_pipeline.store.s3 import ForeignBucket


class SourceProblem(Exception):
    """A source cannot be used. `error` is a stable slug: missing, forbidden, unreachable, too_large, ..."""

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(detail)
        self.error = error
        self.detail = detail


class Sources:
    """Fetches the videos of one manifest."""

    def __init__(self, base: str, config: SourcesConfig, folders: Iterable[str] = ()) -> None:
        """
        Args:
            base: folder or s3://bucket/prefix that relative paths start from.
            config: limits of a download.
            folders: where the sources lie, as `Places.folders`; a lost one is this machine's trouble.
        """
        self.base = base
        self.config = config
        self._stores: dict[str, ForeignBucket] = {}
        self._opening = threading.Lock()
        self._folder = FolderProbe(base, *folders)

    def copies(self, video: str) -> bool:
        """Whether a video lies elsewhere, so that `fetch` makes a copy."""
        return "://" in video or "://" in self.base

    def fetch(self, video: str, folder: Path, most: int | None = None) -> Path:
        """A local file with the bytes of `video`: the source itself when it is a local file, else a copy in `folder`.

        Several threads may fetch copies at once; local files are for one thread.

        Args:
            most: bytes; a larger copy is a problem, `too_large`. None allows `config.max_bytes`, which is the limit of
                local files, too.
        Raises:
            SourceProblem: the source is missing or cannot be used.
            MachineTrouble: this machine cannot reach any source of this kind now.
            StoreError: every try to reach S3 failed.
        """
        if "://" not in video and "://" in self.base:
            video = f"{self.base}/{video}"
        if "://" not in video:
            return self._local(video)
        most = self.config.max_bytes if most is None else most
        target = folder / f"source-{secrets.token_hex(4)}{_suffix(video)}"
        try:
            if video.startswith("s3://"):
                self._from_s3(video, target, most)
            else:
                download(video, target, replace(self.config, max_bytes=most))
        except HttpProblem as problem:
            raise SourceProblem(problem.error, str(problem)) from problem
        except ValueError as error:
            raise SourceProblem("missing", f"is no usable address: {error}") from error
        return target

    def check_machine(self, video: str, path: Path, words: str) -> None:
        """Look for trouble of this machine, because a decoder has failed on the local file `path` of a video.

        Args:
            words: what the decoder said.
        Raises:
            MachineTrouble: the file or its disk cannot be read now.
            SourceProblem: the file has gone meanwhile.
        """
        if path == Path(self.base, video):
            self._local(video)
        if names_a_system_error(words):
            check_readable(path)

    def _local(self, video: str) -> Path:
        path = existing(Path(self.base, video))
        try:
            status = check_regular(path, within=Path(self.base) if self.config.untrusted else None)
            if not os.access(path, os.R_OK):
                raise PermissionError
        except Outside as error:
            detail = "lies outside the manifest's folder, which sources.untrusted=true refuses"
            raise SourceProblem("forbidden", detail) from error
        except (NotRegular, IsADirectoryError) as error:
            raise SourceProblem("not_a_file", "is a folder or a device") from error
        except (OSError, ValueError) as error:
            raise self._unusable(path, error) from error
        self._folder.worked(path)
        self._check_size(status.st_size, self.config.max_bytes)
        return path

    def _unusable(self, path: Path, error: OSError | ValueError) -> SourceProblem | MachineTrouble:
        """What an error says about a local file. Raises: MachineTrouble, as `FolderProbe.check`."""
        number = error.errno if isinstance(error, OSError) else None
        if number in MACHINE_ERRORS:
            return MachineTrouble(f"{path} cannot be read: {os.strerror(number or 0)}")
        if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
            self._folder.check(path)
        if isinstance(error, FileNotFoundError):
            return SourceProblem("missing", "there is no such file")
        if isinstance(error, PermissionError):
            return SourceProblem("forbidden", "may not be read")
        return SourceProblem("missing", f"cannot be opened: {getattr(error, 'strerror', None) or error}")

    def _from_s3(self, video: str, target: Path, most: int) -> None:
        bucket, _, key = video.removeprefix("s3://").partition("/")
        if not bucket or not key:
            raise SourceProblem("missing", "is no address of an object; write s3://bucket/key")
        if self.config.untrusted and not self.config.s3_profile and not self._is_below_base(video):
            raise SourceProblem(
                "forbidden",
                "lies outside the manifest's folder and would be read with this machine's credentials, which "
                "sources.untrusted=true refuses; name a profile for sources in sources.s3_profile",
            )
        store = self._bucket(bucket)
        deadline = Deadline.after(self.config.deadline_s)

        def copy() -> None:
            self._check_size(store.size(key), most)
            store.read_to_file(key, target, arrived)

        def arrived(total: int) -> None:
            deadline.left(0.0)
            self._check_size(total, most)

        try:
            within(deadline, copy)
            if name := what_it_is(target):
                target.unlink()
                raise SourceProblem("not_a_video", f"the object is {name}")
        except Overdue as error:
            raise SourceProblem("timeout", str(error)) from error
        except (CredentialsRefused, NotConfigured) as error:
            raise MachineTrouble(str(error)) from error
        except (FileNotFoundError, PermissionError) as error:
            if not target.parent.is_dir():
                raise MachineTrouble(f"the folder for files in work, {target.parent}, is gone") from error
            kind = "missing" if isinstance(error, FileNotFoundError) else "forbidden"
            raise SourceProblem(kind, str(error)) from error
        except RequestRefused as error:
            raise SourceProblem("missing", str(error)) from error

    def _bucket(self, name: str) -> ForeignBucket:
        """The bucket of that name, opened once for all threads."""
        with self._opening:
            store = self._stores.get(name)
            if store is None:
                config = self.config
                store = self._stores[name] = open_bucket(
                    name, config.retries, profile=config.s3_profile, direct=config.untrusted
                )
            return store

    def _is_below_base(self, video: str) -> bool:
        """Whether an address lies below the place that the operator named as the source."""
        inside = self.base.startswith("s3://") and video.startswith(f"{self.base}/")
        return inside and ".." not in video.split("/")

    def _check_size(self, size: int, most: int) -> None:
        if size > most:
            raise SourceProblem("too_large", f"has {size} bytes, sources.max_bytes is {self.config.max_bytes}")
        if size == 0:
            raise SourceProblem("empty", "has no bytes")


def _suffix(video: str) -> str:
    """The file name's suffix, or "" for an unusual one, which some demuxers need; of raw pictures size and rate too."""
    name = video.split("?")[0].split("#")[0]
    if is_raw(name):
        return raw_ending(name) or RAW_SUFFIX
    suffix = os.path.splitext(name)[1]
    return suffix if suffix[1:].isalnum() and len(suffix) <= 6 else ""

"""Where the rows of a build come from: any number of folders and manifests, on this machine or on S3, and patterns."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.source.config import ColumnsConfig
from data_pipeline.source.names import MANIFEST_SUFFIXES
from data_pipeline.store.base import Store
from data_pipeline.store.files import file_sha256
from data_pipeline.store.open import open_store, without_secrets

Opened = Callable[[str], Store]
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Place:
    """One folder or manifest.

    Args:
        name: for messages; different for each place of a build.
        path: file or folder on this machine, which may be missing; of a manifest on S3 its copy, of a folder None.
        store: of a folder on S3, opened at it; else None.
        scratch: of a folder on S3, where copies may be made; it may be missing.
        prefix: what the relative videos of this place begin with, "" where they start from the base itself.
    """

    name: str
    path: Path | None
    store: Store | None = None
    scratch: Path | None = None
    prefix: str = ""


@dataclass(frozen=True)
class Places:
    """All places of a build, and the folder or s3://bucket/prefix that its relative videos start from."""

    places: tuple[Place, ...]
    base: str
    folders: tuple[str, ...] = ()  # those of this machine that the places lie in, which may be mounts of their own

    @property
    def name(self) -> str:
        """What the sources are called together."""
        return several(self.places[0].name, len(self.places) - 1)

    def fingerprint(self, columns: ColumnsConfig) -> str:
        """Digest of the files and of what their columns are taken for; "" where a place is a folder or is missing.

        Of a single manifest it begins with the SHA-256 of the file, and with the usual columns it is nothing else.
        """
        files = [place.path for place in self.places if place.path is not None and place.path.is_file()]
        if len(files) < len(self.places):
            return ""
        digests = [(place.prefix, file_sha256(path)) for place, path in zip(self.places, files, strict=True)]
        together = digests[0][1] if len(digests) == 1 else _sha256(digests)
        return together if columns == ColumnsConfig() else f"{together}+{_sha256(asdict(columns))[:16]}"


def several(first: str, more: int) -> str:
    """What the first of several places and `more` further ones are called together."""
    return f"{first} and {more} more" if more else first


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def find_places(
    sources: Sequence[str], scratch: Path, opened: Opened = open_store, *, untrusted: bool = False
) -> Places:
    """The places that sources name. Manifests on S3 are copied.

    Args:
        sources: folders, manifests and patterns such as `parts/*.csv` and `s3://bucket/parts/*.parquet`.
        scratch: an empty folder for the copies; it must be kept as long as the places are read.
        opened: opens the store of an address, `open_store` with its options.
        untrusted: refuse manifests of several folders, because each could name the files of the others.
    Raises:
        ValueError: a pattern without a match, or several folders where these are not to be trusted.
        OSError: S3 failed.
    """
    found = [place for source in sources for place in _matches(source, opened)]
    folders = [_folder_of(place) for place in found]
    if untrusted and len(set(folders)) > 1:
        first, second, *_ = map(without_secrets, dict.fromkeys(folders))
        raise ValueError(
            f"sources.untrusted=true takes manifests of one folder, and {first!r} and {second!r} are two; put the "
            "manifests into one, or build them one after another with --append"
        )
    base, prefixes = common_base(folders)
    places = []
    for number, (source, prefix) in enumerate(zip(found, prefixes, strict=True)):
        places.append(_place(source, prefix, scratch / str(number), opened))
    return Places(tuple(places), base, local_folders(folders))


def _place(source: str, prefix: str, scratch: Path, opened: Opened) -> Place:
    name = source.rstrip("/").rpartition("/")[2]
    shown = name if not prefix else prefix if _folder_of(source).endswith(f"/{name}") else f"{prefix}/{name}"
    if "://" not in source:
        return Place(shown, Path(os.path.expanduser(source)), prefix=prefix)
    if not _is_manifest(source):
        return Place(shown, None, opened(source), scratch, prefix)
    folder = source.rpartition("/")[0]
    scratch.mkdir(parents=True)
    opened(folder).read_to_file(name, scratch / name)
    return Place(shown, scratch / name, prefix=prefix)


def _is_manifest(source: str) -> bool:
    return source.lower().endswith(MANIFEST_SUFFIXES)


def _folder_of(source: str) -> str:
    """The folder or address that the relative videos of a place start from."""
    if "://" in source:
        return source.rpartition("/")[0] if _is_manifest(source) else source.rstrip("/")
    path = Path(os.path.expanduser(source))
    return str(path.absolute() if path.is_dir() else path.absolute().parent)


def local_folders(folders: Iterable[str]) -> tuple[str, ...]:
    """The folders of this machine among folders and addresses, each once."""
    return tuple(dict.fromkeys(folder for folder in folders if "://" not in folder))


def common_base(folders: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that videos start from, and what has to stand before those of each place."""
    local = [folder for folder in folders if "://" not in folder]
    base = os.path.commonpath(local) if local else _common_address(folders)
    prefixes = []
    for folder in folders:
        if folder == base:
            prefixes.append("")
        elif "://" in folder and not folder.startswith(f"{base}/"):
            prefixes.append(folder)
        else:
            prefixes.append(folder.removeprefix(base).lstrip("/"))
    return base, prefixes


def _common_address(addresses: Sequence[str]) -> str:
    """The longest address that all begin with; the first one where they have no bucket in common."""
    parted = [address.split("/") for address in addresses]
    common = []
    for parts in zip(*parted, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "/".join(common) if len(common) > 2 else addresses[0]  # `s3:`, ``, bucket


def _matches(source: str, opened: Opened) -> list[str]:
    """The places of a source in the order of their names: itself, unless it is a pattern."""
    if "://" in source:
        scheme, _, rest = source.partition("://")
        if scheme != "s3" or not _PATTERN.search(rest):
            return [source]
        found = list(_keys_like(source, opened))
    else:
        path = str(Path(os.path.expanduser(source)))
        if not _PATTERN.search(source) or os.path.lexists(path):
            return [source]
        found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise ValueError(f"source {without_secrets(source)!r} matches nothing; name manifests that are there")
    return found


def _keys_like(source: str, opened: Opened) -> Iterator[str]:
    """The objects of a pattern. As in a shell, `*` stands for no `/`."""
    match = _PATTERN.search(source)
    assert match is not None
    folder = source[: match.start()].rpartition("/")[0]
    if folder.count("/") < 2:
        raise ValueError(f"source {without_secrets(source)!r} has a pattern in place of its bucket; name the bucket")
    pattern = source[len(folder) + 1 :].split("/")
    begin = _PATTERN.split(pattern[0])[0]
    for key in opened(folder).keys(begin):
        parts = key.split("/")
        if len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern)):
            yield f"{folder}/{key}"

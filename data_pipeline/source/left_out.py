"""What a search for videos does not take, in a folder or on a store: counted while it goes on, told in one line."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace

from data_pipeline.source.names import MANIFEST_SUFFIXES
from data_pipeline.store.counted import counted

_NAMED = 5  # folders or suffixes that a message names


@dataclass
class Some:
    """Things of one sort: how many, and the first few, which a message names. There may be ten million."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(name)

    def __bool__(self) -> bool:
        return self.count > 0


@dataclass
class LeftOut:
    """What a search did not take, for one line to the user."""

    videos: int = 0
    hidden: int = 0
    unknown: Counter[str] = field(default_factory=Counter)  # suffix -> files
    manifests: list[str] = field(default_factory=list)  # also counted by their suffix
    captions: int = 0  # .txt files beside no video
    loops: Some = field(default_factory=Some)  # linked folders that were searched already
    links: Some = field(default_factory=Some)  # linked folders that are not followed
    outside: Some = field(default_factory=Some)  # links out of the folder that are followed
    unreadable: Some = field(default_factory=Some)  # folders
    twins: Some = field(default_factory=Some)  # videos that a table names in other bytes (`twins.py`)

    def file(self, path: str) -> None:
        """Count a file that is no video. `path` is relative to the folder that is searched."""
        name = path.rpartition("/")[2]
        if name.lower().endswith(MANIFEST_SUFFIXES) and not name.startswith("."):
            self.manifests.append(path)
        if name.startswith("."):
            self.hidden += 1
        elif name.lower().endswith(".txt"):
            self.captions += 1
        else:
            self.unknown[os.path.splitext(name)[1].lower() or "no suffix"] += 1

    def without_manifests(self) -> LeftOut:
        """What is still left out when the manifests are read."""
        suffixes = Counter(os.path.splitext(path)[1].lower() for path in self.manifests)
        return replace(self, unknown=self.unknown - suffixes, manifests=[])

    def line(self, name: str) -> str:
        """What was found and what was not taken."""
        parts = [f"{name}: {counted(self.videos, 'video')} found"]
        if self.unknown:
            kinds = [f"{suffix} {count}" for suffix, count in self.unknown.most_common(_NAMED)]
            more = "" if len(self.unknown) <= _NAMED else ", ..."
            total = sum(self.unknown.values())
            parts.append(
                f"files left out that are not named like a video: {total} ({', '.join(kinds)}{more}), a manifest can "
                "name them all the same"
            )
        if self.hidden:
            parts.append(f"hidden files left out: {self.hidden}")
        if self.captions:
            parts.append(f".txt files without a video: {self.captions}")
        for folders, what in (
            (self.loops, "linked folders left out that are searched already"),
            (self.links, "linked folders not followed, as sources.untrusted=true asks"),
            (self.outside, "links followed that leave the folder"),
            (self.unreadable, "folders that cannot be read"),
            (self.twins, "videos that the table names in other Unicode (NFC or NFD), so that each is there twice"),
        ):
            if folders:
                more = "" if folders.count <= _NAMED else ", ..."
                parts.append(f"{what}: {folders.count} ({', '.join(map(repr, folders.first))}{more})")
        return "; ".join(parts)

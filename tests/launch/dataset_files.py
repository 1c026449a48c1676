"""The files of a dataset of shards, as a test reads them without the project's own reader."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path


def clips_of(shards: Path) -> Counter[str]:
    """Id of a source -> how many clips of it lie in the shards that dataset.json lists."""
    found: Counter[str] = Counter()
    for shard in json.loads((shards / "dataset.json").read_text())["shards"]:
        with tarfile.open(shards / shard["name"]) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".json"):
                    file = archive.extractfile(member)
                    assert file is not None
                    found[json.load(file)["id"]] += 1
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Path below a folder -> the bytes of the file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

"""The distinct captions of a dataset of latents, sorted; every shard is read once."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.dataset.captions import EMPTY, captions_of
from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.tar import ClipError, parse_members
from data_pipeline.latents.clips import opened_shard
from data_pipeline.latents.source import ClipsSource, opened_source
from data_pipeline.store.base import Store

TEXT = pa.large_string()
"""The type of many captions together: an array of `pa.string()` holds no more than 2 GiB of characters."""


@dataclass(frozen=True)
class Captions:
    """What there is to encode.

    Attributes:
        texts: the distinct captions in the order of their UTF-8 bytes; the empty caption is the first.
        index: SHA-256 of the index of the latents.
    """

    texts: pa.Array  # of TEXT
    index: str


def distinct_captions(latents: Store, scratch: str | None = None, *, named: str = "--latents ") -> Captions:
    """The captions of all samples of all splits.

    Memory holds the distinct captions. A shard of a remote store is downloaded and removed again.

    Args:
        scratch: folder for temporary files; None takes the system's.
        named: the option that names the store, for messages.
    Raises:
        ValueError: there is no complete dataset of latents, or a sample is damaged; the message names the sample.
        OSError: the store fails.
    """
    with (
        opened_source(latents, scratch, kind=LATENTS, named=named) as source,
        tempfile.TemporaryDirectory(prefix="vidtwin-captions-", dir=scratch) as folder,
    ):
        pieces = [pa.array([EMPTY], TEXT), *_of_shards(source, Path(folder))]
        found = pa.chunked_array(pieces, TEXT).unique()
        return Captions(found.take(pc.array_sort_indices(found)), source.description.digest)


def _of_shards(source: ClipsSource, folder: Path) -> Iterator[pa.Array]:
    """The distinct captions of each shard, in no order."""
    for number, rows in source.tables():
        name = source.description.shards[number].name
        clips = rows.column("source").to_pylist()
        found: set[str] = set()
        with opened_shard(source.store, name, folder) as shard:
            for place, row in enumerate(rows.select(["key", "offset", "size", "crc32"]).to_pylist()):
                if place and clips[place] == clips[place - 1]:
                    continue  # the windows of a clip lie one behind the other, and have the same captions
                found.update(_captions(shard.read(row["offset"], row["size"]), row, source.store.uri(name)))
        yield pa.array(found, TEXT)


def _captions(raw: bytes, row: dict[str, int | str], shard: str) -> tuple[str, ...]:
    """The captions of a sample, from its bytes. Raises: ValueError when the sample is damaged."""
    key = str(row["key"])
    try:
        if len(raw) != row["size"] or zlib.crc32(raw) != row["crc32"]:
            raise ClipError("has another checksum than in the index")
        members = parse_members(raw, key)
        return captions_of(members["json"], members["txt"])
    except ClipError as error:
        raise ValueError(f"{shard}: sample {key} {error}; launch/verify_shards.py proves the dataset") from error

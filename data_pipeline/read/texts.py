"""Reads token embeddings of captions from a dataset of texts, beside latents: any caption with one ranged read.

L tokens of a caption. A process holds 16 bytes for each caption; forked workers share them with their parent.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from data_pipeline.dataset.captions import EMPTY, caption_digest
from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.exact_sums import Float32Array
from data_pipeline.dataset.index import INDEX_KEY, TEXT_INDEX_SCHEMA
from data_pipeline.dataset.index_check import REMEDY, check_rows, require_columns
from data_pipeline.dataset.kind import TEXTS
from data_pipeline.dataset.latent_tensors import read_tensors
from data_pipeline.dataset.tar import ClipError
from data_pipeline.dataset.text_records import TextsDescription
from data_pipeline.dataset.text_tensors import TOKENS
from data_pipeline.read.config import LatentDataConfig, ReadingConfig
from data_pipeline.read.latent_reader import LatentReader
from data_pipeline.read.sample_table import SampleTable
from data_pipeline.read.selection import Selection
from data_pipeline.read.shard_cache import DigestMismatch
from data_pipeline.read.shard_files import ShardFiles
from data_pipeline.read.two_tries import UnreadableSample
from data_pipeline.store.counted import counted

_AT_ONCE = 4096
"""Samples of latents that are looked at together."""


class Texts:
    """The embeddings of a dataset of texts by their captions. Several processes may read after a fork.

    Args:
        config: `data.text` is where it lies, `data.cache_dir` and `data.cache_bytes` are the cache's.
    Raises:
        ValueError: there is no dataset of texts.
        StoreError: the storage fails.

    Attributes:
        description: encoder, width and most tokens, as dataset.json has them.
    """

    def __init__(self, config: LatentDataConfig) -> None:
        self._place, self._latents = config.text, config.shards
        reading = ReadingConfig(shards=config.text, cache_dir=config.cache_dir, cache_bytes=config.cache_bytes)
        self._files = ShardFiles(reading, TEXTS, named="data.text=")
        self.dataset = self._files.dataset
        assert self.dataset.texts is not None
        self.description: TextsDescription = self.dataset.texts
        path = self._files.index_path()
        check_rows(path, len(self._files.dataset.shards))
        self._index = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._check_index()
        # The first 8 bytes of a SHA-256 are enough to find its row; the whole key is compared there.
        names = np.fromiter(
            (int(key[:16], 16) for piece in self._index.column("key").chunks for key in piece.to_pylist()), np.uint64
        )
        self._order = np.argsort(names, kind="stable")
        self._names = names[self._order]

    def _check_index(self) -> None:
        """Raises: ValueError where the index is none of texts."""
        named = f"data.text={self._place}: its {INDEX_KEY}"
        require_columns(self._index.schema.names, TEXT_INDEX_SCHEMA.names, named)
        keys = self._index.column("key")
        wrong = keys.filter(pc.invert(pc.match_substring_regex(keys, "^[0-9a-f]{64}$")))
        if len(wrong):
            raise ValueError(f"{named} has the key {wrong[0].as_py()[:80]!r}, which is no SHA-256; {REMEDY}")

    def describe(self) -> str:
        """One line: how many captions there are, and how many of them were cut."""
        its = self.description
        return (
            f"{self._place}: {counted(self.dataset.samples, 'caption')} of at most {its.max_tokens} tokens of width "
            f"{its.width}; cut to that: {its.truncated}"
        )

    @property
    def empty(self) -> Float32Array:
        """The embeddings of the empty caption, [L, width], which stand for a dropped caption."""
        return self.read(EMPTY, "a dropped caption")

    def know_all_of(self, latents: DatasetFile) -> bool:
        """Whether dataset.json proves that every caption of a dataset of latents has an embedding."""
        return latents.digest in self.description.latents and not self.dataset.rows.rejected

    def check_samples(self, table: SampleTable, selection: Selection, reader: LatentReader, row_bytes: int) -> None:
        """Look at the captions of all selected samples of latents.

        Raises:
            ValueError: a caption has no embedding; the message names the sample.
        """
        row = np.empty(row_bytes, np.uint8)
        for begin in range(0, len(selection.rows), _AT_ONCE):
            for sample in table.samples(selection.rows[begin : begin + _AT_ONCE]):
                try:
                    captions = reader.read_captions(sample, row)
                except UnreadableSample:
                    continue  # it is counted and named when its turn comes, as without texts
                for caption in captions:
                    self._row(caption, sample.key)

    def read(self, caption: str, key: str) -> Float32Array:
        """The embeddings of a caption, [L, width].

        Args:
            key: of the sample that has the caption, for the message.
        Raises:
            ValueError: the caption has no embedding, or a damaged one.
            StoreError: the storage fails.
        """
        row = self._row(caption, key)
        shard, offset, size, begin, length, crc32 = (
            self._index.column(name)[row].as_py()
            for name in ("shard", "offset", "size", "video_offset", "video_size", "crc32")
        )
        raw, whole = b"", False
        try:
            raw = self._files.read(shard, offset, size)
            whole = len(raw) == size and zlib.crc32(raw) == crc32
        except (DigestMismatch, FileNotFoundError, ClipError):
            pass  # the second try says whether the store's own bytes are damaged
        if not whole:
            try:
                raw = self._files.read_afresh(shard, offset, size)
            except FileNotFoundError as error:
                raise self._damaged(key, f"its shard is missing: {error}") from error
            if len(raw) != size or zlib.crc32(raw) != crc32:
                raise self._damaged(key, "has another checksum than in the index")
            self._files.discard(shard)
        try:
            return read_tensors(raw[begin - offset : begin - offset + length])[TOKENS]
        except (ClipError, KeyError) as error:
            raise self._damaged(key, str(error)) from error

    def after_fork(self) -> None:
        """Replace connections that a forked child must not share with its parent."""
        self._files.after_fork()

    def _row(self, caption: str, key: str) -> int:
        """The row of a caption in the index. Raises: ValueError where it has none."""
        digest = caption_digest(caption)
        place = int(np.searchsorted(self._names, np.uint64(int(digest[:16], 16))))
        while place < len(self._names) and int(self._names[place]) == int(digest[:16], 16):
            row = int(self._order[place])
            if self._index.column("key")[row].as_py() == digest:
                return row
            place += 1
        raise ValueError(
            f"data.text={self._place} has no embedding of the caption {caption[:80]!r} of {key}; run "
            f"launch/encode_text.py --latents {self._latents} --output {self._place} again"
        )

    def _damaged(self, key: str, what: str) -> ValueError:
        return ValueError(
            f"data.text={self._place}: the embedding of a caption of {key} {what}; run launch/verify_shards.py "
            f"--shards {self._place} and encode again what it names"
        )


def padded_texts(texts: Sequence[Float32Array]) -> tuple[Tensor, Tensor]:
    """Embeddings of b captions, [L, width] each, as float32 [b, longest L, width] and their mask, bool [b, longest L].

    The mask is True for real tokens; behind them stand zeros.
    """
    longest, width = max(map(len, texts)), texts[0].shape[1]
    together, mask = torch.zeros(len(texts), longest, width), torch.zeros(len(texts), longest, dtype=torch.bool)
    for place, tokens in enumerate(texts):
        together[place, : len(tokens)] = torch.from_numpy(tokens)
        mask[place, : len(tokens)] = True
    return together, mask

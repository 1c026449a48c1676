"""Reads the bytes of a sample and decodes them; where that fails, a second try reads from the store itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from data_pipeline.dataset.tar import ClipError
from data_pipeline.read.config import ReadingConfig
from data_pipeline.read.sample_table import Sample
from data_pipeline.read.shard_cache import DigestMismatch
from data_pipeline.read.shard_files import ShardFiles

T = TypeVar("T")


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read in two tries."""

    row: int
    key: str
    shard: str
    error: str

    def __str__(self) -> str:
        return f"{self.key} (row {self.row}, {self.shard}): {self.error}"


class UnreadableSample(ValueError):
    """A sample was unreadable in both tries; `bad` says which sample, and why."""

    def __init__(self, bad: BadSample) -> None:
        super().__init__(str(bad))
        self.bad = bad

    def __reduce__(self) -> tuple[type[UnreadableSample], tuple[BadSample]]:
        return UnreadableSample, (self.bad,)


class TooManyBadSamples(RuntimeError):
    """More distinct samples were unreadable than data.max_bad_samples allows; the message lists them."""

    @classmethod
    def listing(cls, config: ReadingConfig, bad: list[BadSample]) -> TooManyBadSamples:
        """The error for these samples. It is not the constructor, because pickle makes an error from its message."""
        lines = "\n".join(f"  {item}" for item in bad)
        return cls(
            f"data.max_bad_samples={config.max_bad_samples}: {len(bad)} samples of {config.shards} cannot be read:\n"
            f"{lines}\n"
            "run launch/verify_shards.py on the dataset and rebuild what it names, or raise data.max_bad_samples"
        )


class TwoTries:
    """Reads samples of one dataset. Each process needs an instance of its own.

    Args:
        files: the dataset's shards.
    """

    def __init__(self, files: ShardFiles) -> None:
        self.files = files
        self._bad: dict[int, BadSample] = {}  # so that no epoch downloads them again

    def read(self, sample: Sample, decode: Callable[[bytes], T]) -> T:
        """What `decode` makes of the bytes of a sample.

        Args:
            decode: raises ClipError for bytes that do not hold the sample.
        Raises:
            UnreadableSample: neither the local bytes nor a fresh download could be read.
            StoreError: the storage fails, so nothing is known about the sample.
        """
        if sample.row in self._bad:
            raise UnreadableSample(self._bad[sample.row])
        try:
            return decode(self.files.read(sample.shard, sample.offset, sample.size))
        except (DigestMismatch, FileNotFoundError):
            damaged_copy = False
        except ClipError:
            damaged_copy = True  # or the object in the store is damaged, which the second try shows
        try:
            result = decode(self.files.read_afresh(sample.shard, sample.offset, sample.size))
        except (ClipError, FileNotFoundError) as error:
            shard = self.files.dataset.shards[sample.shard].name
            bad = self._bad[sample.row] = BadSample(sample.row, sample.key, shard, f"{type(error).__name__}: {error}")
            raise UnreadableSample(bad) from error
        if damaged_copy:
            self.files.discard(sample.shard)
        return result

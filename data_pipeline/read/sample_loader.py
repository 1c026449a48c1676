"""What all loaders of batches share: order, ranks, position, growth, workers, prefetch, stand-ins of bad samples.

A batch is one rank's whole share of one global step. The state of a loader is a `Position`; to start from any position,
it reads nothing of what came before. What the reading of one sample is, a subclass says.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch

from data_pipeline.dataset.kind import Kind
from data_pipeline.read.batches import Examples, Position, Substitute
from data_pipeline.read.config import ReadingConfig
from data_pipeline.read.order import BatchPlan
from data_pipeline.read.sample_sequence import SampleSequence
from data_pipeline.read.sample_table import Sample, SampleTable
from data_pipeline.read.selection import Selection, check_lanes
from data_pipeline.read.shard_files import ShardFiles
from data_pipeline.read.shard_prefetch import ShardPrefetcher
from data_pipeline.read.shared_memory import bytes_ahead
from data_pipeline.read.two_tries import BadSample, TooManyBadSamples, UnreadableSample
from data_pipeline.read.worker_pool import WorkerPool

log = logging.getLogger(__name__)


W = TypeVar("W")  # the tensors of a batch while its samples are read
B = TypeVar("B", bound=Examples)


class SampleLoader(ABC, Generic[W, B]):
    """The training samples of one rank.

    Args:
        config: what to read.
        rank: this process among `world_size`.
        world_size: ranks that share every global batch.
        pin_memory: deliver tensors in page-locked memory (needs a GPU).
    Raises:
        ValueError: no such dataset, no eligible sample, fewer samples than lanes, or numbers that cannot be dealt to
            the ranks; the message names the key to change.
    """

    KIND: ClassVar[Kind]  # of the datasets that the loader reads
    SELECTED_BY: ClassVar[str]  # settings that decide which samples are read, for messages
    CHECKSUMS: ClassVar[bool]  # whether reading a sample needs its CRC-32

    def __init__(self, config: ReadingConfig, rank: int = 0, world_size: int = 1, *, pin_memory: bool = False) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} ranks")
        self.config = config
        self.rank = rank
        self.plan = BatchPlan(config.global_batch, config.lane_count, world_size)
        self.files = ShardFiles(config, self.KIND)
        self.table = SampleTable(self.files.index_path(), len(self.files.dataset.shards), checksums=self.CHECKSUMS)
        self.selection = self._select()
        check_lanes(config, len(self.selection.rows))
        self.sequence = SampleSequence(config, self.files.dataset, self.selection, self.SELECTED_BY)
        self._pin_memory = pin_memory
        self._bad: dict[int, BadSample] = {}
        self._running: Iterator[B] | None = None

    # ---- what a subclass says -------------------------------------------------------------------------------------

    @abstractmethod
    def _select(self) -> Selection:
        """The samples that the configuration can read. Raises: ValueError when there is none."""

    @abstractmethod
    def _begin(self, begin: int, examples: int) -> W:
        """Tensors for that many examples of the global batch that begins at sample `begin`."""

    @abstractmethod
    def _read(self, work: W, place: int, sample: Sample, epoch: int, attempt: int) -> str:
        """Fill one place and return the caption.

        Args:
            attempt: above 0 when the sample takes the place of an unreadable one.
        Raises:
            UnreadableSample: it cannot be read.
        """

    @abstractmethod
    def _finish(self, work: W, examples: Examples) -> B:
        """The batch, when all places are filled."""

    @abstractmethod
    def _tensor_bytes(self, examples: int) -> list[int]:
        """The most bytes of each tensor of a batch of that many examples, without the rows."""

    def _after_fork(self) -> None:
        """Replace connections that a forked worker must not share with its parent."""
        self.files.after_fork()

    # ---- what is the same for all ---------------------------------------------------------------------------------

    def describe(self) -> str:
        """One line: how many samples of the split are read, and how many are left out and why."""
        return f"{self.config.shards}, split {self.config.split}: {self.selection.describe()}"

    def __len__(self) -> int:
        """E, the samples of an epoch over all ranks: lanes x (eligible samples // lanes), of all shards there are."""
        return len(self.sequence)

    @property
    def bad_samples(self) -> list[BadSample]:
        """Every distinct sample that this rank could not read so far."""
        return list(self._bad.values())

    @property
    def identity(self) -> dict[str, Any]:
        """The settings and samples that give a position its meaning.

        A checkpoint saves them with the position, and `continue_from` compares them when a run resumes.
        """
        return self.sequence.identity

    @property
    def shared_bytes(self) -> int:
        """The most bytes of shared memory that this rank's batches take."""
        examples = self.plan.rank_batch
        return bytes_ahead(self.config, [*self._tensor_bytes(examples), 8 * examples])

    def continue_from(self, saved: Mapping[str, Any], position: Position) -> str:
        """Read the sequence of samples that a position was saved with, and nothing else.

        Shards that were added since are read from the next epoch on, which is the position's own one where that has
        not begun.

        Args:
            saved: `identity` of the loader that gave the position.
        Returns:
            A line that says what was added and from when on it is read; empty where nothing was.
        Raises:
            ValueError: the seed, lanes, window, dataset or eligible samples differ; the message says which of them.
        """
        return self.sequence.continue_from(saved, position)

    def from_position(
        self, position: Position | None = None, while_waiting: Callable[[], None] | None = None
    ) -> Iterator[B]:
        """The endless sequence of batches from a position on. A new call ends the sequence of the call before.

        Args:
            position: where to begin; None for the beginning.
            while_waiting: called about once a second while the main thread waits for the workers; an error that it
                raises ends the sequence.
        Raises:
            ValueError: no batch begins at this position.
            TooManyBadSamples: while iterating.
            RuntimeError: a worker died, while iterating.
        """
        begin = self.sequence.number(position or Position(), self.plan.granularity)
        self.close()
        self._running = self._iterate(begin, while_waiting)
        return self._running

    def close(self) -> None:
        """Stop the workers and wait for their end. The loader can be used again."""
        running, self._running = self._running, None
        if running is not None:
            running.close()  # type: ignore[attr-defined]

    def _iterate(self, begin: int, while_waiting: Callable[[], None] | None) -> Iterator[B]:
        config, plan = self.config, self.plan
        pool = WorkerPool(
            self.read_batch,
            range(begin, 2**62, plan.global_batch),
            workers=config.workers,
            prefetch=config.prefetch,
            timeout_s=config.timeout_s,
            pin_memory=self._pin_memory,
            on_start=self._after_fork,
            while_waiting=while_waiting,
        )
        # The prefetcher's thread starts after the workers are forked: a fork copies no thread, but it would copy the
        # locks that the thread holds.
        prefetcher = self._prefetcher()
        try:
            epoch, consumed = map(int, self.sequence.orders.locate(begin))
            place = consumed // config.lane_count
            prefetcher.check_room(epoch, place)
            prefetcher.advance(epoch, place)
            for batch in pool:
                self._count_bad(batch.substitutes)
                prefetcher.advance(batch.position.epoch, batch.position.consumed // config.lane_count)
                yield batch
        finally:
            prefetcher.close()
            pool.close()

    def _prefetcher(self) -> ShardPrefetcher:
        config = self.config
        rows = max(config.global_batch // config.lane_count, 1)
        in_flight = (config.workers * config.prefetch + 1) * rows
        return ShardPrefetcher(
            self.files,
            self.sequence.fresh_orders(),  # without workers the calling thread reads by the caches of `orders`
            self.plan.rank_lanes(self.rank),
            ahead=in_flight + config.shuffle_window,
            budget=config.cache_bytes // 2,
        )

    def _count_bad(self, substitutes: list[Substitute]) -> None:
        for substitute in substitutes:
            if substitute.bad.row not in self._bad:
                self._bad[substitute.bad.row] = substitute.bad
                log.warning("skipped %s; %s stands in", substitute.bad, substitute.key)
        if len(self._bad) > self.config.max_bad_samples:
            raise TooManyBadSamples.listing(self.config, self.bad_samples)

    def read_batch(self, begin: int) -> B:
        """This rank's share of the global batch that begins at sample `begin` of the endless sequence.

        Raises:
            TooManyBadSamples: more than data.max_bad_samples, or all samples of a lane, are unreadable.
        """
        epochs, positions = self.sequence.orders.locate(self.plan.rank_samples(begin, self.rank))
        work = self._begin(begin, len(epochs))
        shown: list[Sample] = []
        captions: list[str] = []
        substitutes: list[Substitute] = []
        places = zip(
            self.table.samples(self.sequence.rows(epochs, positions)), epochs.tolist(), positions.tolist(), strict=True
        )
        for place, (own, epoch, position) in enumerate(places):
            sample, caption, bad = self._read_place(work, place, own, epoch, position)
            shown.append(sample)
            captions.append(caption)
            substitutes += [Substitute(place, item, sample.key) for item in bad]
        epoch, consumed = map(int, self.sequence.orders.locate(begin + self.config.global_batch))
        examples = Examples(
            captions=captions,
            labels=[sample.label for sample in shown],
            keys=[sample.key for sample in shown],
            indices=torch.tensor([sample.row for sample in shown], dtype=torch.int64),
            position=Position(epoch, consumed),
            substitutes=substitutes,
        )
        return self._finish(work, examples)

    def _read_place(
        self, work: W, place: int, own: Sample, epoch: int, position: int
    ) -> tuple[Sample, str, list[BadSample]]:
        """Fill one place of a batch with its own sample, or with the first readable substitute.

        Returns:
            The sample that is shown, its caption, and the samples that could not be read.
        """
        order, bad, sample = self.sequence.orders.at(epoch), list[BadSample](), own
        for attempt in range(min(order.lane_length, self.config.max_bad_samples + 1)):
            if attempt:
                other = order.substitute(position, attempt)
                sample = self.table[int(self.selection.rows[order.sample_at(epoch, other)])]
            try:
                return sample, self._read(work, place, sample, epoch, attempt), bad
            except UnreadableSample as error:
                bad.append(error.bad)
        raise TooManyBadSamples.listing(self.config, bad)

"""The order of an epoch is a formula, which gives any position of any epoch without reading what came before.

Names: N samples in all, C lanes, L = N // C samples a lane, E = C * L samples an epoch, W samples a window, G samples a
global batch. Shards, permuted by (seed, epoch), are laid end to end and cut into C lanes of L consecutive samples; the
N - E < C samples behind the last lane sit out that epoch. Inside a lane, each window of W samples is permuted.

    sample n of an epoch      lane n mod C, position n div C in that lane
    global batch t            the samples n in [t G, (t + 1) G) of the endless sequence of epochs

docs/data_order.md derives what follows from this. Random numbers are Philox4x64-10 blocks (Salmon et al., SC 2011)
addressed by a counter, taken raw: NumPy keeps a bit generator's raw stream fixed between releases, but not the
permutations and integers that its Generator derives from it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_pipeline.store.counted import counted

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

# The second word of the Philox key: the purpose of a draw. Another number here gives every run another order or other
# crops.
PURPOSE_SHARDS = 1
PURPOSE_WINDOW = 2
PURPOSE_VIEW = 3
PURPOSE_FRAMES = 4
PURPOSE_LATENT = 5
PURPOSE_CAPTION = 6

_CACHED_PLACES = 1 << 22  # window permutations kept, in samples of 4 bytes: 16 MB, or two windows of every lane


def draw(seed: int, purpose: int, counter: tuple[int, int, int], count: int) -> UInt64Array:
    """`count` uniform 64-bit words, which follow from the arguments alone.

    Args:
        seed: the run's seed, in [0, 2**64).
        purpose: one of the PURPOSE_ constants, so that draws for different purposes never share words.
        counter: three further coordinates, each in [0, 2**64).
        count: how many words.
    """
    # uint64 arrays, because NumPy would take a list with a number above 2**63 through float64
    generator = np.random.Philox(
        key=np.array([seed, purpose], dtype=np.uint64), counter=np.array([0, *counter], dtype=np.uint64)
    )
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def permutation(seed: int, purpose: int, counter: tuple[int, int, int], count: int) -> Int64Array:
    """A permutation of range(count): the order of `count` random words (ties, one in 2**64, keep their order)."""
    return np.argsort(draw(seed, purpose, counter, count), kind="stable").astype(np.int64)


def below(word: int, bound: int) -> int:
    """Map a uniform 64-bit word to [0, bound); the bias is under bound / 2**64."""
    return (int(word) * bound) >> 64


def choose(word: int, counts: Sequence[int], shares: Sequence[float]) -> int:
    """One of `counts`: each takes a part of the 64-bit words in proportion to its share; equal parts without shares."""
    bounds = np.cumsum(shares or [1.0] * len(counts))
    place = float(word) / 2**64 * float(bounds[-1])
    return counts[min(int(np.searchsorted(bounds, place, side="right")), len(counts) - 1)]


@dataclass(frozen=True)
class _EpochLayout:
    """The shards of one epoch in their permuted order, and where each begins."""

    shards: Int64Array  # [S]
    starts: Int64Array  # [S + 1] position of each shard's first sample in the laid-out epoch


@dataclass
class EpochOrder:
    """The formula for one set of shards.

    Holds two numbers a shard and a bounded cache of window permutations, whatever the number of samples.

    Args:
        counts: samples in each shard, [S].
        lanes: C.
        window: W.
        seed: the run's seed.
    Raises:
        ValueError: there are fewer samples than lanes.
    """

    counts: Int64Array
    lanes: int
    window: int
    seed: int
    first: Int64Array = field(init=False)  # [S + 1] first sample of each shard, numbering samples shard by shard
    _layouts: OrderedDict[int, _EpochLayout] = field(init=False, default_factory=OrderedDict, repr=False)
    _windows: OrderedDict[tuple[int, int, int], npt.NDArray[np.int32]] = field(
        init=False, default_factory=OrderedDict, repr=False
    )

    def __post_init__(self) -> None:
        self.counts = np.asarray(self.counts, dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        if self.samples < self.lanes:
            there_are = counted(self.samples, "sample there is", "samples there are")
            raise ValueError(
                f"data.lanes={self.lanes} is more than the {there_are} to read; "
                f"set data.lanes={max(self.samples, 1)} or less, or read a dataset with more samples"
            )

    @property
    def samples(self) -> int:
        """N."""
        return int(self.first[-1])

    @property
    def lane_length(self) -> int:
        """L."""
        return self.samples // self.lanes

    @property
    def epoch_samples(self) -> int:
        """E, the samples that one epoch shows."""
        return self.lanes * self.lane_length

    def layout(self, epoch: int) -> _EpochLayout:
        """The shards of an epoch in order, with the position of each one's first sample."""
        layout = self._layouts.get(epoch)
        if layout is None:
            shards = permutation(self.seed, PURPOSE_SHARDS, (epoch, 0, 0), len(self.counts))
            starts = np.concatenate([[0], np.cumsum(self.counts[shards])]).astype(np.int64)
            layout = self._layouts[epoch] = _EpochLayout(shards, starts)
            if len(self._layouts) > 2:  # a batch may straddle two epochs, never three in a working run
                self._layouts.popitem(last=False)
        return layout

    def sample_at(self, epoch: int, n: int | npt.ArrayLike) -> Int64Array:
        """Which samples stand at positions `n` of an epoch.

        Args:
            epoch: 0, 1, ...
            n: positions in [0, E), any shape.
        Returns:
            Sample numbers in [0, N), counting samples shard by shard; the shape of `n`.
        """
        positions = np.asarray(n, dtype=np.int64)
        flat = positions.reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= self.epoch_samples):
            raise IndexError(f"position {flat.min()}..{flat.max()} outside an epoch of {self.epoch_samples} samples")
        lane, place = flat % self.lanes, flat // self.lanes
        window, inside = place // self.window, place % self.window
        shuffled = np.empty_like(inside)
        group = lane * (self.lane_length // self.window + 1) + window
        by_group = np.argsort(group, kind="stable")
        starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))  # a group is never -1
        of_group = by_group[starts]
        ends = np.append(starts[1:], len(group))[: len(starts)]
        groups = zip(starts.tolist(), ends.tolist(), lane[of_group].tolist(), window[of_group].tolist(), strict=True)
        for begin, end, its_lane, its_window in groups:
            members = by_group[begin:end]
            shuffled[members] = self._window(epoch, its_lane, its_window)[inside[members]]
        laid = lane * self.lane_length + window * self.window + shuffled
        layout = self.layout(epoch)
        slot = np.searchsorted(layout.starts, laid, side="right") - 1
        return np.asarray(self.first[layout.shards[slot]] + laid - layout.starts[slot]).reshape(positions.shape)

    def _window(self, epoch: int, lane: int, window: int) -> npt.NDArray[np.int32]:
        key = (epoch, lane, window)
        order = self._windows.get(key)
        if order is None:
            size = min(self.window, self.lane_length - window * self.window)
            order = permutation(self.seed, PURPOSE_WINDOW, key, size).astype(np.int32)
            self._windows[key] = order
            if len(self._windows) * self.window > max(_CACHED_PLACES, 2 * self.lanes * self.window):
                self._windows.popitem(last=False)
        else:
            self._windows.move_to_end(key)
        return order

    def substitute(self, n: int, attempt: int) -> int:
        """The position whose sample takes the place of an unreadable one at `n` of the same epoch.

        Attempt k = 1, 2, ... below L is the k-th next place of the lane, counted round: most often of the same window
        and so of shards that are open already, and the same for any number of ranks and workers.
        """
        return (n + attempt * self.lanes) % self.epoch_samples

    def lane_shards(self, epoch: int, lane: int, begin: int, end: int) -> Int64Array:
        """The shards that hold places [begin, end) of a lane before the shuffle, in the order they are laid."""
        layout = self.layout(epoch)
        low, high = lane * self.lane_length + begin, lane * self.lane_length + min(end, self.lane_length)
        if high <= low:
            return np.empty(0, dtype=np.int64)
        first = int(np.searchsorted(layout.starts, low, side="right")) - 1
        last = int(np.searchsorted(layout.starts, high - 1, side="right"))
        shards = layout.shards[first:last]
        return np.asarray(shards[self.counts[shards] > 0])


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is dealt to ranks.

    With G = k C (k >= 1) a batch is k whole rows of the C lanes and is laid lane by lane: slot i holds lane i div k, so
    the contiguous slice of a rank covers only its own lanes. With C = m G a batch is a run of G neighbouring lanes and
    slot i holds sample t G + i. Other pairs of C and G would send every rank through every lane and are refused.

    Raises:
        ValueError: the numbers cannot be dealt; the message names data.lanes, data.global_batch or the ranks.
    """

    global_batch: int
    lanes: int
    world_size: int

    def __post_init__(self) -> None:
        batch, lanes, ranks = self.global_batch, self.lanes, self.world_size
        if batch % lanes and lanes % batch:
            near = [c for c in range(1, batch + 1) if batch % c == 0]
            best = min(near, key=lambda c: abs(c - lanes))
            raise ValueError(
                f"data.lanes={lanes} neither divides data.global_batch={batch} nor is a multiple of it; "
                f"set data.lanes to a divisor or a multiple of {batch}, such as {best}"
            )
        if batch % ranks:
            raise ValueError(
                f"data.global_batch={batch} is not divisible by {ranks} ranks; start a number of ranks that divides "
                f"it, or set data.global_batch to a multiple of {ranks}, such as {-(-batch // ranks) * ranks}"
            )

    @property
    def rank_batch(self) -> int:
        """Samples of each batch that one rank reads."""
        return self.global_batch // self.world_size

    @property
    def granularity(self) -> int:
        """A position at which a batch can begin is a multiple of this."""
        return min(self.lanes, self.global_batch)

    def rank_samples(self, begin: int, rank: int) -> Int64Array:
        """The positions that a rank reads of the batch beginning at `begin` of the endless sequence, in slot order."""
        slots = np.arange(rank * self.rank_batch, (rank + 1) * self.rank_batch, dtype=np.int64)
        rows = max(self.global_batch // self.lanes, 1)
        if rows == 1:
            return begin + slots
        return np.asarray(begin + (slots % rows) * self.lanes + slots // rows)

    def rank_lanes(self, rank: int) -> Int64Array:
        """The lanes that a rank ever touches, ascending."""
        slots = np.arange(rank * self.rank_batch, (rank + 1) * self.rank_batch, dtype=np.int64)
        rows = max(self.global_batch // self.lanes, 1)
        groups = max(self.lanes // self.global_batch, 1)
        lanes = np.unique(slots // rows)
        return np.asarray(np.concatenate([lanes + g * self.global_batch for g in range(groups)]))

"""The order formula against a second implementation that builds whole epochs, and exhaustively on small numbers."""

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest

from data_pipeline.read.order import (
    PURPOSE_SHARDS,
    PURPOSE_VIEW,
    PURPOSE_WINDOW,
    BatchPlan,
    EpochOrder,
    below,
    choose,
    draw,
    permutation,
)

MASK = 2**64 - 1


def philox_block(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as the paper's section 3.3 and table 1 give it (Salmon et al., SC 2011), in Python integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        high, low = divmod(0xD2E7470EE14C6C93 * a, 1 << 64)
        high2, low2 = divmod(0xCA5A826395121157 * c, 1 << 64)
        a, b, c, d = high2 ^ b ^ k, low2, high ^ d ^ m, low
        k, m = (k + 0x9E3779B97F4A7C15) & MASK, (m + 0xBB67AE8584CAA73B) & MASK
    return [a, b, c, d]


def words(seed: int, purpose: int, counter: tuple[int, int, int], count: int) -> list[int]:
    """What `draw` promises, from the function above; NumPy's first block is number 1."""
    out: list[int] = []
    block = 1
    while len(out) < count:
        out += philox_block([block, *counter], [seed, purpose])
        block += 1
    return out[:count]


def shuffled(items: list[int], seed: int, purpose: int, counter: tuple[int, int, int]) -> list[int]:
    keys = words(seed, purpose, counter, len(items))
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def whole_epoch(counts: list[int], lanes: int, window: int, seed: int, epoch: int) -> list[int]:
    """An epoch as design text: permute shards, lay end to end, cut into lanes, shuffle windows, deal."""
    first = np.cumsum([0, *counts]).tolist()
    order = shuffled(list(range(len(counts))), seed, PURPOSE_SHARDS, (epoch, 0, 0))
    laid = [first[shard] + i for shard in order for i in range(counts[shard])]
    length = len(laid) // lanes
    columns = []
    for lane in range(lanes):
        column: list[int] = []
        for number, begin in enumerate(range(0, length, window)):
            piece = laid[lane * length : (lane + 1) * length][begin : begin + window]
            column += shuffled(piece, seed, PURPOSE_WINDOW, (epoch, lane, number))
        columns.append(column)
    return [columns[n % lanes][n // lanes] for n in range(length * lanes)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]),
        ([MASK] * 4, [MASK] * 2, [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]),
        (
            [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
            [0x452821E638D01377, 0xBE5466CF34E90C6C],
            [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
        ),
    ],
)
def test_our_philox_gives_the_known_answers_of_random123(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    assert philox_block(counter, key) == expected


def test_draws_are_philox_blocks_addressed_by_seed_purpose_and_counter() -> None:
    for seed, purpose, counter in ((0, 1, (0, 0, 0)), (2**63 - 1, 3, (7, 10**7, 2)), (5, 2, (0, MASK, 1))):
        assert draw(seed, purpose, counter, 11).tolist() == words(seed, purpose, counter, 11)


def test_below_maps_the_ends_of_the_range_to_the_ends() -> None:
    assert [below(w, 7) for w in (0, MASK, MASK // 7, MASK // 7 + 1)] == [0, 6, 0, 1]
    values = [below(w, 5) for w in draw(1, PURPOSE_VIEW, (0, 0, 0), 5000).tolist()]
    assert all(900 < values.count(v) < 1100 for v in range(5))  # sd 28


@pytest.mark.parametrize("counts", [[1], [5], [3, 1, 4], [0, 7, 0, 2, 0], [1] * 9, [2, 7, 1, 8, 2, 8, 1, 3]])
@pytest.mark.parametrize("window", [1, 2, 3, 7, 1000])
def test_every_position_is_what_the_built_epoch_holds(counts: list[int], window: int) -> None:
    for lanes in range(1, min(sum(counts), 9) + 1):
        for seed, epoch in ((0, 0), (0, 1), (9, 4)):
            order = EpochOrder(np.array(counts), lanes, window, seed)
            expected = whole_epoch(counts, lanes, window, seed, epoch)
            assert order.epoch_samples == len(expected)
            assert order.sample_at(epoch, np.arange(len(expected))).tolist() == expected
            for n in (0, len(expected) // 2, len(expected) - 1):  # random access, from a fresh object
                assert EpochOrder(np.array(counts), lanes, window, seed).sample_at(epoch, n) == expected[n]


def test_an_epoch_shows_each_sample_at_most_once_and_leaves_out_fewer_than_lanes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = rng.integers(0, 9, size=rng.integers(1, 12))
        total = int(counts.sum())
        if not total:
            continue
        lanes, window = int(rng.integers(1, total + 1)), int(rng.integers(1, 12))
        order = EpochOrder(counts, lanes, window, seed=int(rng.integers(0, 2**62)))
        shown = order.sample_at(3, np.arange(len(range(order.epoch_samples)))).tolist()
        assert len(set(shown)) == len(shown)
        assert set(shown) <= set(range(total))
        assert total - len(shown) <= lanes - 1


def test_epochs_and_seeds_differ_and_leave_out_other_samples() -> None:
    orders = [EpochOrder(np.full(20, 5), 7, 10, seed).sample_at(e, np.arange(98)) for seed in (0, 1) for e in (0, 1)]
    assert len({tuple(o.tolist()) for o in orders}) == 4
    assert len({frozenset(range(100)) - set(o.tolist()) for o in orders}) > 1


def test_positions_outside_the_epoch_are_refused() -> None:
    order = EpochOrder(np.array([5, 6]), 3, 2, 0)
    for n in (-1, 9, [0, 9]):
        with pytest.raises(IndexError, match="9 samples"):
            order.sample_at(0, n)
    assert order.sample_at(0, np.zeros((2, 3), int)).shape == (2, 3)
    assert order.sample_at(0, []).size == 0


def test_fewer_samples_than_lanes_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"data\.lanes=4 .* 3 samples .* set data\.lanes=3"):
        EpochOrder(np.array([1, 2]), 4, 8, 0)


def test_ten_million_samples_need_no_ten_million_numbers() -> None:
    counts = np.full(20_000, 500)
    tracemalloc.start()
    order = EpochOrder(counts, 256, 1024, 0)
    last = order.epoch_samples - 1
    order.sample_at(12, [0, last // 2, last])
    order.sample_at(13, np.arange(last - 256, last))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6


def test_the_window_cache_is_bounded() -> None:
    order = EpochOrder(np.full(1000, 5_000), 1, 200_000, 0)
    for n in range(0, order.epoch_samples, 200_000):
        order.sample_at(0, n)
    assert 0 < sum(len(w) for w in order._windows.values()) <= 1 << 22
    for epoch in range(5):
        order.sample_at(epoch, 0)
    assert len(order._layouts) == 2, "a batch lies in two epochs at most"


def test_stand_ins_go_once_round_the_lane_nearest_first() -> None:
    order = EpochOrder(np.array([5, 9, 4]), 3, 4, 0)
    for n in range(order.epoch_samples):
        others = [order.substitute(n, attempt) for attempt in range(1, order.lane_length)]
        assert sorted([n, *others]) == [m for m in range(order.epoch_samples) if m % 3 == n % 3]
        assert others[0] == (n + 3 if n + 3 < order.epoch_samples else n % 3)


def test_lane_shards_are_the_shards_that_hold_a_stretch_of_a_lane() -> None:
    counts = np.array([3, 0, 4, 2, 5])
    order = EpochOrder(counts, 3, 2, 0)
    owner = np.repeat(np.arange(5), counts)
    for epoch in range(8):
        layout = [s for shard in order.layout(epoch).shards for s in range(order.first[shard], order.first[shard + 1])]
        for lane in range(3):
            for begin in range(order.lane_length):
                for end in range(begin + 1, order.lane_length + 3):
                    stretch = layout[lane * 4 : (lane + 1) * 4][begin:end]
                    expected = list(dict.fromkeys(owner[stretch].tolist()))
                    assert order.lane_shards(epoch, lane, begin, end).tolist() == expected


def dealt(plan: BatchPlan, begin: int) -> list[int]:
    return [int(n) for rank in range(plan.world_size) for n in plan.rank_samples(begin, rank)]


@pytest.mark.parametrize(("lanes", "batch"), [(1, 12), (4, 12), (12, 12), (24, 12), (3, 24), (12, 24), (48, 24)])
def test_a_batch_is_the_same_for_any_number_of_ranks(lanes: int, batch: int) -> None:
    for begin in range(0, 4 * lanes * batch, batch):
        whole = dealt(BatchPlan(batch, lanes, 1), begin)
        assert sorted(whole) == list(range(begin, begin + batch))
        for ranks in (2, 3, 4, 6, 12):
            assert dealt(BatchPlan(batch, lanes, ranks), begin) == whole


@pytest.mark.parametrize(("lanes", "batch"), [(1, 12), (4, 12), (12, 12), (24, 12), (3, 24), (12, 24), (48, 24)])
def test_a_rank_only_ever_reads_its_own_lanes(lanes: int, batch: int) -> None:
    for ranks in (1, 2, 3, 4, 6, 12):
        plan = BatchPlan(batch, lanes, ranks)
        own = [set(plan.rank_lanes(rank).tolist()) for rank in range(ranks)]
        for rank in range(ranks):
            read = {int(n) % lanes for b in range(0, 6 * lanes * batch, batch) for n in plan.rank_samples(b, rank)}
            assert read == own[rank]
        if lanes % ranks == 0:  # then nobody shares a lane
            assert sum(len(o) for o in own) == lanes
            assert {len(o) for o in own} == {lanes // ranks}


@pytest.mark.parametrize(("lanes", "batch", "step"), [(1, 12, 1), (4, 12, 4), (12, 12, 12), (24, 12, 12), (48, 24, 24)])
def test_a_batch_begins_where_no_lane_is_ahead_of_its_group(lanes: int, batch: int, step: int) -> None:
    """Whole rows of all lanes where a batch holds some; else whole groups of as many lanes as a batch has samples."""
    assert BatchPlan(batch, lanes, 1).granularity == step


def test_ranks_read_disjoint_shares_of_the_bytes() -> None:
    """1/R of the shards each, and at most one shard shared at each border between two ranks."""
    order, ranks = EpochOrder(np.full(400, 10), 16, 32, 0), 4
    plan = BatchPlan(32, 16, ranks)
    touched = []
    for rank in range(ranks):
        n = np.concatenate([plan.rank_samples(b, rank) for b in range(0, order.epoch_samples - 31, 32)])
        touched.append(set((order.sample_at(0, n) // 10).tolist()))
    assert all(100 <= len(t) <= 102 for t in touched)
    assert sum(len(t) for t in touched) <= 400 + ranks - 1


def test_what_cannot_be_dealt_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"data\.lanes=8 neither divides data\.global_batch=12 .* such as 6"):
        BatchPlan(12, 8, 2)
    with pytest.raises(ValueError, match=r"data\.global_batch=12 is not divisible by 5 ranks.* such as 15"):
        BatchPlan(12, 4, 5)


def test_permutations_reach_every_order() -> None:
    seen = {tuple(permutation(0, PURPOSE_WINDOW, (e, 0, 0), 3).tolist()) for e in range(100)}
    assert len(seen) == 6


def test_choice_takes_each_count_for_its_part_of_all_words() -> None:
    counts, shares = [2, 3, 8], [1.0, 2.0, 5.0]
    eighth = 2**61
    for word, wanted in ((0, 2), (eighth - 2**10, 2), (eighth, 3), (3 * eighth - 2**11, 3), (3 * eighth, 8), (MASK, 8)):
        assert choose(word, counts, shares) == wanted
    chosen = [choose(word, counts, []) for word in range(0, 2**64, 2**64 // 300 + 1)]
    assert [Fraction(chosen.count(n), len(chosen)) for n in counts] == [Fraction(1, 3)] * 3
    assert choose(MASK, [16], []) == 16

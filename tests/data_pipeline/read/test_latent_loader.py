"""Batches of latents: the order of clips, the values of other libraries, the same for any ranks, workers and start."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.read.latent_loader import LatentLoader
from data_pipeline.read.loader import ClipLoader, DataConfig, Position
from data_pipeline.read.order import EpochOrder
from data_pipeline.read.two_tries import TooManyBadSamples
from tests.data_pipeline.dataset.tiny_dataset import make_clips, write_dataset
from tests.data_pipeline.latents_dataset import make_clips as make_latent_clips
from tests.data_pipeline.latents_dataset import settings_of, write_latents
from tests.data_pipeline.read.latent_reading import (
    GLOBAL_BATCH,
    TRAIN,
    damage,
    fingerprint,
    global_batches,
    index_columns,
    latent_config,
    stored_samples,
    write,
)
from tests.data_pipeline.read.loading import cached, upload


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("latents"))


@pytest.mark.parametrize("dtype", list(LatentDtype))
def test_a_batch_holds_what_is_stored(tmp_path: Path, dtype: LatentDtype) -> None:
    root = write(tmp_path, dtype)
    stored = stored_samples(root)
    loader = LatentLoader(latent_config(root), 1, 3)
    assert loader.describe() == f"{root}, split train: {TRAIN} samples in 4 shards; left out: 8 samples of other splits"
    batch = next(loader.from_position())
    assert batch.structure.shape == (4, 3, 4, 2, 2)
    assert batch.dynamics.shape == (4, 2, 8, 4)
    assert batch.structure.dtype == batch.dynamics.dtype == torch.float32
    assert batch.structure.is_contiguous()
    assert batch.dynamics.is_contiguous()
    assert batch.position == Position(0, GLOBAL_BATCH)
    for place, key in enumerate(batch.keys):
        assert torch.equal(batch.structure[place], stored[key].structure)
        assert torch.equal(batch.dynamics[place], stored[key].dynamics)
        assert (batch.captions[place], batch.labels[place]) == (stored[key].caption, stored[key].label)
    keys = index_columns(root, "key")[0]
    assert [keys[row] for row in batch.indices.tolist()] == batch.keys


def test_the_order_is_the_formula_over_the_rows_of_the_split(latents: Path) -> None:
    """EpochOrder on the counts of the index, which Arrow reads; G = 3 C: slot i is sample (i mod 3) C + i div 3."""
    splits, shards = index_columns(latents, "split", "shard")
    rows = np.flatnonzero(np.array(splits) == "train")
    counts = np.bincount(np.array(shards)[rows], minlength=max(shards) + 1)  # type: ignore[type-var]
    order = EpochOrder(counts, lanes=4, window=3, seed=11)
    found = [row for batch in global_batches(latent_config(latents), 1, 12) for (_, _, _, row, _, _) in batch]
    for number, slot in ((n, s) for n in range(12) for s in range(12)):
        epoch, position = divmod(number * 12 + slot % 3 * 4 + slot // 3, order.epoch_samples)
        assert found[number * 12 + slot] == rows[int(order.sample_at(epoch, position))]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than a small machine has cores
@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize(("ranks", "workers"), [(2, 0), (4, 0), (1, 2), (2, 1)])
def test_ranks_and_workers_change_nothing(latents: Path, sample: bool, ranks: int, workers: int) -> None:
    expected = global_batches(latent_config(latents, sample=sample, normalize=sample), 1, 6)
    settings = latent_config(latents, sample=sample, normalize=sample, workers=workers)
    assert global_batches(settings, ranks, 6) == expected


@pytest.mark.parametrize("sample", [False, True])
def test_resuming_at_every_position_gives_the_rest_of_the_same_sequence(latents: Path, sample: bool) -> None:
    loader = LatentLoader(latent_config(latents, global_batch=4, sample=sample))
    whole = [(batch.position, fingerprint(batch)) for batch in islice(loader.from_position(), 34)]
    for step, (position, _) in enumerate(whole[:-3]):
        rest = [fingerprint(batch) for batch in islice(loader.from_position(position), 3)]
        assert rest == [examples for _, examples in whole[step + 1 : step + 4]]
    assert whole[-1][0].epoch == 2


def test_draws_differ_between_epochs_seeds_and_keys_and_means_do_not(latents: Path) -> None:
    def by_epoch(**changes: object) -> list[dict[int, bytes]]:
        """Row -> structure, of two epochs of 60 samples."""
        batches = global_batches(latent_config(latents, **changes), 1, 10)
        examples = [example for batch in batches for example in batch]
        return [{row: data for _, _, _, row, data, _ in part} for part in (examples[:60], examples[60:])]

    first, second = by_epoch(sample=True)
    both = first.keys() & second.keys()
    assert len(both) > 50
    assert not any(first[row] == second[row] for row in both)
    assert not any(first[row] == data for row, data in by_epoch(sample=True, seed=12)[0].items() if row in first)
    assert len(set(first.values())) == 60
    means, again = by_epoch()
    assert all(means[row] == again[row] for row in means.keys() & again.keys())


def test_a_draw_does_not_depend_on_where_the_sample_lies(tmp_path: Path) -> None:
    """The same tensors of the same keys in other shards and rows: noise follows the key."""
    clips = make_latent_clips(4, windows=(1,))
    settings = settings_of(logvar=True)
    for name, shards in (("one", [clips]), ("two", [make_latent_clips(3, split="val"), clips])):
        write_latents(tmp_path / name, shards, settings, scale=0.0)  # mean 0 and deviation 1: the noise itself
    found = []
    for name in ("one", "two"):
        loader = LatentLoader(latent_config(tmp_path / name, sample=True, global_batch=4, lanes=1))
        found.append({key: noise for key, _, _, _, *noise in fingerprint(next(loader.from_position()))})
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_draws_have_the_mean_and_the_deviation_of_the_posterior(tmp_path: Path) -> None:
    """1000 epochs of 2 samples. With n draws the mean of (z - mean) / deviation is within 5 / sqrt(n) of 0 and the
    mean square within 5 sqrt(2 / n) of 1 in all of 176 values, but for chances below 1e-3."""
    root = tmp_path
    write_latents(root, [make_latent_clips(2, windows=(1,))], settings_of(logvar=True))
    stored = stored_samples(root)
    loader = LatentLoader(latent_config(root, sample=True, global_batch=2, lanes=1))
    count = 1000
    sums = {key: [np.zeros(112), np.zeros(112)] for key in stored}
    for batch in islice(loader.from_position(), count):
        for place, key in enumerate(batch.keys):
            drawn = torch.cat([batch.structure[place].flatten(), batch.dynamics[place].flatten()]).double().numpy()
            names = ("dynamics_w_logvar", "dynamics_h_logvar")
            logvar = torch.cat([stored[key].tensors[name] for name in names], dim=-1).flatten()
            logvar = torch.cat([stored[key].tensors["structure_logvar"].flatten(), logvar]).double().numpy()
            mean = torch.cat([stored[key].structure.flatten(), stored[key].dynamics.flatten()]).double().numpy()
            z = (drawn - mean) / np.exp(logvar / 2)
            sums[key][0] += z
            sums[key][1] += z**2
    for first, second in sums.values():
        assert np.abs(first / count).max() < 5 / math.sqrt(count)
        assert np.abs(second / count - 1).max() < 5 * math.sqrt(2 / count)


def test_normalised_latents_are_numpys(latents: Path) -> None:
    stored = stored_samples(latents)
    train = [sample for key, sample in stored.items() if key.startswith("train")]
    batch = next(LatentLoader(latent_config(latents, normalize=True)).from_position())
    parts = {"structure": batch.structure, "dynamics_w": batch.dynamics[..., :2], "dynamics_h": batch.dynamics[..., 2:]}
    for name, found in parts.items():
        values = np.stack([sample.tensors[name].double().numpy() for sample in train])
        axes = (0, *range(2, values.ndim))
        mean, deviation = (f(values, axis=axes, keepdims=True)[0] for f in (np.mean, np.std))
        for place, key in enumerate(batch.keys):
            expected = (stored[key].tensors[name].double().numpy() - mean) / deviation
            np.testing.assert_allclose(found[place].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_mirrored_samples_can_be_left_out(latents: Path) -> None:
    loader = LatentLoader(latent_config(latents, mirrored=False))
    assert loader.selection.left_out == {"other split": 8, "mirrored": TRAIN // 2}
    mirrored = index_columns(latents, "mirrored")[0]
    assert not any(mirrored[row] for batch in islice(loader.from_position(), 6) for row in batch.indices.tolist())


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_the_dataset_does_not_have_is_refused(tmp_path: Path) -> None:
    write_latents(tmp_path / "means", [make_latent_clips(3, split="val")])
    with pytest.raises(ValueError, match=r"data\.sample=true needs the log-variances, .*stored\.logvar=true"):
        LatentLoader(latent_config(tmp_path / "means", sample=True, split="val", global_batch=1, lanes=1))
    with pytest.raises(ValueError, match=r"no sample of split 'train', .* data\.normalize=false"):
        LatentLoader(latent_config(tmp_path / "means", normalize=True, split="val", global_batch=1, lanes=1))
    with pytest.raises(ValueError, match=r"no sample has data\.split='train'; the dataset has val"):
        LatentLoader(latent_config(tmp_path / "means"))


def test_the_other_kind_of_dataset_is_refused_with_the_script_that_makes_the_right_one(
    latents: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"is a dataset of latents; give one of clips, .* launch/build_shards\.py"):
        ClipLoader(DataConfig(shards=str(latents)))
    clips = write_dataset(tmp_path, [make_clips(3)])
    with pytest.raises(ValueError, match=r"is a dataset of clips; give one of latents, .* launch/encode_latents\.py"):
        LatentLoader(latent_config(clips))


# --- growth, damage, stores ------------------------------------------------------------------------------------------


def test_a_dataset_that_grew_is_taken_up_from_the_next_epoch_on(tmp_path: Path) -> None:
    """As clips are: the begun epoch ends as it would have, and the next one is that of the grown dataset."""
    clips = make_latent_clips(12, windows=(2,))
    roots = {}
    for name, shards in (("old", [clips[:4], clips[4:8]]), ("new", [clips[:4], clips[4:8], clips[8:]])):
        roots[name] = tmp_path / name
        write_latents(roots[name], shards)
    position = Position(1, 4)
    settings = {name: latent_config(root, global_batch=4, lanes=4) for name, root in roots.items()}
    old, new = (LatentLoader(settings[name]) for name in ("old", "new"))
    line = new.continue_from(old.identity, position)
    assert line.endswith("split train has 24 samples now; the new ones are read from epoch 2 on")
    found = [fingerprint(batch) for batch in islice(new.from_position(position), 9)]
    rest = [fingerprint(batch) for batch in islice(old.from_position(position), 3)]
    fresh = LatentLoader(settings["new"]).from_position(Position(2, 0))
    assert found == rest + [fingerprint(batch) for batch in islice(fresh, 6)]


def test_a_position_of_other_samples_is_refused(latents: Path) -> None:
    saved = LatentLoader(latent_config(latents)).identity
    loader = LatentLoader(latent_config(latents, mirrored=False))
    with pytest.raises(ValueError, match=r"other samples.*data\.split and data\.mirrored of the saved run"):
        loader.continue_from(saved, Position(0, 12))


def test_a_sample_with_a_changed_bit_is_replaced_the_same_for_all_ranks(latents: Path, tmp_path: Path) -> None:
    root = write(tmp_path)
    healthy = global_batches(latent_config(root, sample=True), 1, 6)
    keys = damage(root, [3, 17, 18])
    loader = LatentLoader(latent_config(root, sample=True, workers=1))
    batches = list(islice(loader.from_position(), 6))
    loader.close()
    assert {bad.key for bad in loader.bad_samples} == set(keys)
    assert all("CRC-32" in bad.error for bad in loader.bad_samples)
    found = [fingerprint(batch) for batch in batches]
    for before, after in zip(healthy, found, strict=True):
        for one, other in zip(before, after, strict=True):
            assert (one == other) == (one[0] not in keys)
    assert global_batches(latent_config(root, sample=True), 2, 6) == found
    with pytest.raises(TooManyBadSamples, match=r"(?s)data\.max_bad_samples=1.*verify_shards") as caught:
        list(islice(LatentLoader(latent_config(root, max_bad_samples=1)).from_position(), 6))
    assert sum(key in str(caught.value) for key in keys) >= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_gives_the_batches_of_a_folder(latents: Path, moto_bucket: str, tmp_path: Path, workers: int) -> None:
    uri = f"s3://{moto_bucket}/latents{workers}"
    upload(latents, uri)
    there = latent_config(uri, cache_dir=str(tmp_path / "cache"), workers=workers, sample=True)
    assert global_batches(there, 1, 4) == global_batches(latent_config(latents, sample=True), 1, 4)
    assert cached(tmp_path) <= 4 + 1  # the shards of the split, and the index


def test_shared_memory_is_counted_by_the_tensors(latents: Path) -> None:
    """Three tensors of one page each, for the batches of 2 x 2 ahead and two more."""
    loader = LatentLoader(latent_config(latents, workers=2), 0, 2)
    assert loader.shared_bytes == 3 * 4096 * (2 * 2 + 2)

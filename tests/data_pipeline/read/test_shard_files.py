"""The loader on S3: the same batches as from a folder, few requests, and stores and caches that misbehave."""

import errno
import hashlib
import logging
import os
from itertools import islice
from pathlib import Path

import pytest

from data_pipeline.read.loader import ClipLoader
from data_pipeline.read.sweep import iterate_clips
from data_pipeline.store.open import open_store
from tests.data_pipeline.read.loading import CLIPS, GLOBAL_BATCH, batches, cached, config, fingerprint, remote, upload


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_dataset_gives_the_batches_of_a_local_one(
    root: Path, shared_uri: str, tmp_path: Path, workers: int
) -> None:
    assert batches(remote(shared_uri, tmp_path, workers=workers), 6) == batches(config(root), 6)
    assert cached(tmp_path) <= 10 + 1  # ten shards with samples, and the index


@pytest.mark.s3
def test_a_real_gateway_gives_the_batches_of_a_local_dataset(root: Path, s3_uri: str, tmp_path: Path) -> None:
    upload(root, s3_uri)
    expected = batches(config(root), 6)
    for ranks in (1, 2):
        shares = [batches(remote(s3_uri, tmp_path, workers=1), 6, rank, ranks) for rank in range(ranks)]
        assert [[e for share in step for e in share] for step in zip(*shares, strict=True)] == expected
    sweep = iterate_clips(remote(s3_uri, tmp_path, workers=2), "train", batch_size=4)
    assert [k for clips in sweep for k in clips.keys] == [c.key for c in CLIPS]


def test_a_cache_for_two_shards_is_enough(
    root: Path, shared_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    largest = max(p.stat().st_size for p in (root / "shards").iterdir())
    index = (root / "index.arrow").stat().st_size
    settings = remote(shared_uri, tmp_path, cache_bytes=index + 2 * largest)
    with caplog.at_level(logging.WARNING):
        assert batches(settings, 4) == batches(config(root), 4)
    assert "data.shuffle_window" in caplog.text
    assert sum(p.stat().st_size for p in (tmp_path / "cache").glob("*.data")) <= index + 2 * largest


def test_a_cache_without_room_reads_single_samples_and_says_so(
    root: Path, shared_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    largest = max(p.stat().st_size for p in (root / "shards").iterdir())
    settings = remote(shared_uri, tmp_path, cache_bytes=largest + 1)  # the index, always held, leaves no room beside it
    loader = ClipLoader(settings)
    with caplog.at_level(logging.WARNING):
        got = [fingerprint(b) for b in islice(loader.from_position(), 2)]
    loader.close()
    assert got == batches(config(root), 2)
    assert loader.files.uncached_reads > 0
    assert caplog.text.count("data.cache_bytes") >= 1


def test_a_damaged_cached_shard_is_healed_from_the_store(shared_uri: str, tmp_path: Path) -> None:
    expected = batches(remote(shared_uri, tmp_path), 6)
    for path in (tmp_path / "cache").glob("*.data"):
        if path.read_bytes()[:6] != b"ARROW1":
            path.write_bytes(bytes(path.stat().st_size))  # the disk went bad under the cache
    loader = ClipLoader(remote(shared_uri, tmp_path))
    assert [fingerprint(b) for b in islice(loader.from_position(), 6)] == expected
    loader.close()
    assert loader.bad_samples == []
    for path in (tmp_path / "cache").glob("*.data"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem, "and so is the cache, for the next reader"


def test_a_cached_shard_that_cannot_be_read_is_healed_as_well(
    shared_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk under the cache fails: the samples come from the store, and the copy goes."""
    expected = batches(remote(shared_uri, tmp_path), 2)
    before = cached(tmp_path)

    def broken(descriptor: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        loader = ClipLoader(remote(shared_uri, tmp_path))
        assert fingerprint(loader.read_batch(0)) == expected[0]
    assert cached(tmp_path) < before
    assert loader.bad_samples == []
    assert fingerprint(loader.read_batch(GLOBAL_BATCH)) == expected[1]


def test_a_shard_that_is_not_the_indexed_one_is_refused(own_uri: str, tmp_path: Path) -> None:
    """Digests say which shard; its samples count as unreadable, with the reason, until the budget stops the run."""
    store = open_store(own_uri)
    name = "shards/000000-000.tar"
    data = bytearray(store.read(name))
    data[600] ^= 255
    store.write(name, bytes(data))
    loader = ClipLoader(remote(own_uri, tmp_path))
    keys = {k for b in islice(loader.from_position(), 4) for k in b.keys}
    loader.close()
    assert keys
    assert cached(tmp_path) > 1
    assert not any(
        (tmp_path / "cache" / f"{entry.sha256}.data").exists()
        for entry in loader.files.dataset.shards
        if entry.name == name
    )


def test_a_missing_shard_costs_its_samples_only(own_uri: str, tmp_path: Path) -> None:
    open_store(own_uri).delete("shards/000000-000.tar")
    loader = ClipLoader(remote(own_uri, tmp_path))
    list(islice(loader.from_position(), 3))
    loader.close()
    assert {b.shard for b in loader.bad_samples} == {"shards/000000-000.tar"}
    assert all("FileNotFoundError" in b.error for b in loader.bad_samples)


def test_an_unreachable_store_stops_the_run_and_blames_no_sample(
    shared_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = ClipLoader(remote(shared_uri, tmp_path))
    monkeypatch.setattr("data_pipeline.store.base.time.sleep", lambda seconds: None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens on the discard port
    loader.files.after_fork()
    with pytest.raises(OSError, match=r"shards/00000\d-000\.tar"):
        next(loader.from_position())
    loader.close()
    assert loader.bad_samples == []


def test_the_index_of_a_remote_dataset_is_never_evicted(shared_uri: str, tmp_path: Path) -> None:
    loader = ClipLoader(remote(shared_uri, tmp_path))
    assert loader.files.cache is not None
    os.utime(loader.table.path, (0, 0))
    loader.files.cache.capacity = 1_000
    assert [loader.table[r].key for r in range(31)] == [c.key for c in CLIPS]
    assert loader.table.path.exists()

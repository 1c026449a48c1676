"""The loader on S3: the same batches as from a folder, few requests, and stores and caches that misbehave."""

import errno
import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from data_pipeline.read import shard_files
from data_pipeline.read.config import DataConfig
from data_pipeline.read.loader import ClipLoader, Position
from data_pipeline.read.order import BatchPlan, EpochOrder
from data_pipeline.read.shard_prefetch import upcoming_shards
from data_pipeline.read.sweep import iterate_clips
from data_pipeline.store.base import ATTEMPTS, StoreError
from data_pipeline.store.open import open_store
from tests.data_pipeline.dataset.tiny_dataset import split_into_shards, write_dataset
from tests.data_pipeline.read.loading import CLIPS, GLOBAL_BATCH, config, fingerprint
from tests.tools.web import QuietHandler, serving


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tiny"), split_into_shards(CLIPS, (4, 1, 6, 0, 2)))


@pytest.fixture(scope="module")
def moto_bucket() -> Iterator[str]:
    """An imitation of S3 in this process, and a bucket in it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**settings, "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"  # moto's memory outlives its server
        boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
        yield bucket
    server.stop()


@pytest.fixture(scope="module")
def shared_uri(moto_bucket: str, root: Path) -> str:
    """The dataset on S3, not to be changed."""
    upload(root, f"s3://{moto_bucket}/shared")
    return f"s3://{moto_bucket}/shared"


@pytest.fixture
def own_uri(moto_bucket: str, root: Path) -> str:
    """A copy of the dataset on S3 for one test."""
    uri = f"s3://{moto_bucket}/{uuid.uuid4().hex}"
    upload(root, uri)
    return uri


def upload(root: Path, uri: str) -> None:
    store = open_store(uri)
    for path in root.rglob("*"):
        if path.is_file():
            store.write_file(path.relative_to(root).as_posix(), path)


def remote(uri: str, tmp_path: Path, **changes: object) -> DataConfig:
    return config(Path("."), **{"shards": uri, "cache_dir": str(tmp_path / "cache"), **changes})


def batches(settings: DataConfig, count: int, rank: int = 0, ranks: int = 1) -> list[list[tuple]]:
    loader = ClipLoader(settings, rank, ranks)
    try:
        return [fingerprint(b) for b in islice(loader.from_position(), count)]
    finally:
        loader.close()


def cached(tmp_path: Path) -> int:
    return len(list((tmp_path / "cache").glob("*.data")))


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


def test_upcoming_shards_are_those_the_next_samples_lie_in() -> None:
    order = EpochOrder(np.array([5, 3, 8, 2, 6, 4, 7]), 4, 3, 0)  # N = 35, L = 8
    owner = np.repeat(np.arange(7), order.counts)
    plan = BatchPlan(4, 4, 2)
    for rank in range(2):
        for epoch in (0, 1):
            for place in range(8):
                found = upcoming_shards(order, plan.rank_lanes(rank), epoch, place, ahead=5)
                begin = epoch * 32 + place * 4
                wanted = set()
                for start in range(begin, begin + 5 * 4, 4):
                    epochs, positions = np.divmod(plan.rank_samples(start, rank), 32)
                    for e, p in zip(epochs, positions, strict=True):
                        wanted.add(int(owner[order.sample_at(int(e), int(p))]))
                assert wanted <= set(found)
                assert len(set(found)) == len(found)


def test_the_prefetcher_fills_the_cache_before_the_samples_are_read(shared_uri: str, tmp_path: Path) -> None:
    loader = ClipLoader(remote(shared_uri, tmp_path, shuffle_window=1000))
    running = loader.from_position(Position(0, 12))
    next(running)
    prefetch = loader._prefetcher()  # a window is a whole lane here, so all shards are upcoming
    prefetch.advance(0, 0)
    wanted, end = 1 + np.count_nonzero(loader.selection.counts), time.monotonic() + 120
    while cached(tmp_path) < wanted and time.monotonic() < end:
        time.sleep(0.01)
    assert cached(tmp_path) == wanted
    prefetch.close()
    loader.close()


# --- trouble of the storage, which is no fault of a sample -----------------------------------------------------------


def unmount(own: Path) -> Callable[[], object]:
    """The whole dataset is gone; returns what brings it back."""
    away = own.with_name("away")
    own.rename(away)
    return lambda: away.rename(own)


def break_disk(own: Path) -> Callable[[], object]:
    """Reading a shard fails with EIO, which is the kernel's answer for an address where a process has no memory."""
    good = own.with_name("good")
    (own / "shards").rename(good)
    (own / "shards").mkdir()
    for path in good.iterdir():
        (own / "shards" / path.name).symlink_to("/proc/self/mem")

    def mend() -> None:
        shutil.rmtree(own / "shards")
        good.rename(own / "shards")

    return mend


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A local copy of the dataset for one test."""
    return Path(shutil.copytree(root, tmp_path / "own"))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Pauses between tries are none; in the last one, what is in the list happens."""
    last, count = [], [0]

    def sleep(seconds: float) -> None:
        count[0] += 1
        if count[0] == ATTEMPTS - 1 and last:
            last.pop()()

    monkeypatch.setattr("data_pipeline.store.base.time.sleep", sleep)
    return last


@pytest.mark.parametrize("harm", [unmount, break_disk])
def test_trouble_that_passes_costs_neither_a_sample_nor_the_order(
    own: Path, pauses: list[Callable[[], object]], harm: Callable[[Path], Callable[[], object]]
) -> None:
    expected = batches(config(own), 4)
    loader = ClipLoader(config(own))
    running = loader.from_position()
    got = [fingerprint(next(running))]
    pauses.append(harm(own))
    got += [fingerprint(batch) for batch in islice(running, 3)]
    loader.close()
    assert not pauses
    assert got == expected
    assert loader.bad_samples == []


@pytest.mark.parametrize(
    ("harm", "workers", "trouble"),
    [
        (unmount, 0, "No such file or directory.*, and dataset.json is missing as well"),
        (unmount, 1, "No such file or directory.*, and dataset.json is missing as well"),
        (break_disk, 1, "Input/output error"),
    ],
)
def test_trouble_that_lasts_is_the_storages_in_one_line(
    own: Path,
    pauses: list[Callable[[], object]],
    harm: Callable[[Path], Callable[[], object]],
    workers: int,
    trouble: str,
) -> None:
    loader = ClipLoader(config(own, workers=workers, max_bad_samples=0))
    harm(own)
    with pytest.raises(StoreError) as caught:
        next(loader.from_position())
    loader.close()
    assert re.fullmatch(
        rf"{own}/shards/00000\d-000\.tar: failed 8 times, last: \[Errno \d+\] {trouble}", str(caught.value)
    )
    assert loader.bad_samples == []


def test_a_missing_file_costs_its_samples_only(own: Path, pauses: list[Callable[[], object]]) -> None:
    """The rest of the dataset is there, so it is not waited for either."""
    (own / "shards" / "000000-000.tar").unlink()
    pauses.append(lambda: pytest.fail("waited"))
    loader = ClipLoader(config(own))
    list(islice(loader.from_position(), 3))
    assert {b.shard for b in loader.bad_samples} == {"shards/000000-000.tar"}


class Rotating(QuietHandler):
    """S3, as far as reading needs it, over a folder: signed with another key than the one that holds, it refuses."""

    folder: Path
    holds: str

    def do_GET(self) -> None:
        if f"Credential={self.holds}/" not in self.headers["Authorization"]:
            self._answer(403, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>")
            return
        data = (self.folder / self.path.split("/", 2)[2]).read_bytes()
        begin, end = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()  # type: ignore[union-attr]
        part = data[int(begin) : int(end) + 1 if end else None]
        self._answer(206, part, ("Content-Range", f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}"))

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def rotating(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Credentials in a file, as a service keeps them: sets which key is there, and which one the store takes."""
    file = tmp_path / "credentials"
    handler = type("Handler", (Rotating,), {"folder": root})

    def rotate(here: str, there: str) -> None:
        file.write_text(f"[default]\naws_access_key_id={here}\naws_secret_access_key=s\n")
        handler.holds = there

    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    with serving(handler) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
        yield rotate


def test_credentials_that_expire_are_looked_up_anew(
    root: Path, tmp_path: Path, rotating: Callable[[str, str], None], pauses: list[Callable[[], object]]
) -> None:
    rotating("OLD", "OLD")
    loader = ClipLoader(remote("s3://bucket", tmp_path))
    rotating("OLD", "NEW")
    pauses.append(lambda: rotating("NEW", "NEW"))
    got = [fingerprint(b) for b in islice(loader.from_position(), 3)]
    loader.close()
    assert not pauses
    assert got == batches(config(root), 3)
    assert loader.bad_samples == []


def test_expired_credentials_refuse_a_start_and_end_a_run_as_the_stores_trouble(
    tmp_path: Path, rotating: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "ATTEMPTS", 2)
    rotating("OLD", "OLD")
    loader = ClipLoader(remote("s3://bucket", tmp_path, workers=1, max_bad_samples=0))
    rotating("OLD", "NEW")
    message = r"s3://bucket/shards/00000\d-000\.tar: failed 2 times, last: the store refused \(ExpiredToken\).*rights"
    with pytest.raises(StoreError) as caught:
        next(loader.from_position())
    loader.close()
    assert re.fullmatch(message, str(caught.value))
    with pytest.raises(ValueError, match=r"data\.shards=s3://bucket may not be read: .*ExpiredToken"):
        ClipLoader(remote("s3://bucket", tmp_path))


def test_a_full_disk_under_the_cache_ends_the_run_and_is_named(
    shared_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = ClipLoader(remote(shared_uri, tmp_path, max_bad_samples=0))

    def full(path: Path, *words: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(
        StoreError, match=rf"data\.cache_dir={tmp_path}/cache cannot be used: No space left .*; free space"
    ):
        next(loader.from_position())
    loader.close()
    assert loader.bad_samples == []

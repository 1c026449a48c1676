"""The node's shard cache: several processes, a bounded folder, killed downloaders, objects that are not as promised."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.read.shard_cache import CachedObject, CacheFull, DigestMismatch, ShardCache
from data_pipeline.store.base import StoreError
from data_pipeline.store.local import LocalStore
from tests.faults.disks import needs_root, small_disk

FORK = multiprocessing.get_context("fork")
SIZE = 1000


class CountingStore(LocalStore):
    """A folder that plays the remote store and notes every download; can be slow, and wrong for a while."""

    def __init__(self, root: Path, *, seconds: float = 0.0, wrong: int = 0) -> None:
        super().__init__(root)
        self.seconds, self.wrong = seconds, wrong

    def read_to_file(self, key: str, path: str | Path, arrived: Callable[[int], None] = lambda total: None) -> int:
        with (self.root / "downloads").open("a") as log:
            log.write(f"{key}\n")
        if self.seconds:
            Path(path).write_bytes(b"half")
            time.sleep(self.seconds)
        size = super().read_to_file(key, path, arrived)
        if self.wrong > 0:
            self.wrong -= 1
            Path(path).write_bytes(b"?" * size)
        return size

    def downloads(self) -> list[str]:
        path = self.root / "downloads"
        return path.read_text().split() if path.exists() else []


def make_store(root: Path, count: int, **behaviour: float) -> tuple[CountingStore, list[CachedObject]]:
    root.mkdir()
    items = []
    for number in range(count):
        data = np.random.default_rng(number).bytes(SIZE)
        (root / f"{number}.tar").write_bytes(data)
        items.append(CachedObject(f"{number}.tar", SIZE, hashlib.sha256(data).hexdigest()))
    return CountingStore(root, **behaviour), items  # type: ignore[arg-type]


def content(cache: ShardCache, item: CachedObject) -> bytes:
    with cache.open(item) as descriptor:
        return os.pread(descriptor, 2 * SIZE, 0)


def held(cache: ShardCache) -> int:
    """Bytes the folder takes, files in progress included; nobody evicts while they are added up."""
    total = 0
    with (cache.folder / "room.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder, _, names in os.walk(cache.folder):
            for name in names:
                with suppress(FileNotFoundError):
                    total += 0 if name.endswith(".lock") else os.stat(f"{folder}/{name}").st_size
    return total


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_object_is_downloaded_once_and_read_whole(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 3)
    cache = ShardCache(store, tmp_path / "cache", 10 * SIZE)
    for _ in range(3):
        for number, item in enumerate(items):
            assert content(cache, item) == (store.root / f"{number}.tar").read_bytes()
    assert store.downloads() == ["0.tar", "1.tar", "2.tar"]
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def _read_many(store: CountingStore, items: list[CachedObject], folder: Path, capacity: int, seed: int) -> None:
    cache = ShardCache(store, folder, capacity)
    for number in np.random.default_rng(seed).integers(0, len(items), 60):
        data = content(cache, items[number])
        assert hashlib.sha256(data).hexdigest() == items[number].sha256
        assert held(cache) <= capacity


def run_all(processes: list[multiprocessing.context.ForkProcess]) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # who hangs holds a lock that the next test may want
    assert codes == [0] * len(processes)


def test_processes_share_one_download_each(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 4, seconds=0.05)
    job = (store, items, tmp_path / "cache", 10 * SIZE)
    run_all([FORK.Process(target=_read_many, args=(*job, seed), daemon=True) for seed in range(4)])
    assert sorted(store.downloads()) == ["0.tar", "1.tar", "2.tar", "3.tar"]


def test_many_processes_in_a_small_cache_never_exceed_it_and_always_read_right(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 12)
    job = (store, items, tmp_path / "cache", 6 * SIZE)  # 4 readers hold at most 4
    run_all([FORK.Process(target=_read_many, args=(*job, seed), daemon=True) for seed in range(4)])
    assert len(store.downloads()) > 12  # there was eviction


def test_the_least_recently_used_goes_first_and_never_what_is_being_read(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 5)
    cache = ShardCache(store, tmp_path / "cache", 3 * SIZE)
    for number in (0, 1, 2, 0):
        content(cache, items[number])
        time.sleep(0.01)
    content(cache, items[3])
    assert [cache.path(i).exists() for i in items] == [True, False, True, True, False]
    with cache.open(items[2]) as descriptor:  # the oldest now, but open
        content(cache, items[4])
        assert [cache.path(i).exists() for i in items] == [False, False, True, True, True]
        assert os.pread(descriptor, SIZE, 0) == (store.root / "2.tar").read_bytes()


def test_no_room_is_an_error_while_all_is_being_read(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 3)
    cache = ShardCache(store, tmp_path / "cache", 2 * SIZE)
    with cache.open(items[0]), cache.open(items[1]), pytest.raises(CacheFull, match=r"data\.cache_bytes=2000"):
        content(cache, items[2])
    content(cache, items[2])
    with pytest.raises(ValueError, match=r"data\.cache_bytes=999 is smaller than .*0\.tar \(1000 bytes\)"):
        content(ShardCache(store, tmp_path / "cache", SIZE - 1), CachedObject("0.tar", SIZE, "0" * 64))


def test_wrong_bytes_are_downloaded_again_and_then_refused(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 1, wrong=1)
    cache = ShardCache(store, tmp_path / "cache", 10 * SIZE)
    assert content(cache, items[0]) == (store.root / "0.tar").read_bytes()
    assert len(store.downloads()) == 2
    cache.discard(items[0])
    store.wrong = 2
    with pytest.raises(DigestMismatch, match=r"0\.tar: SHA-256 is .* dataset\.json says"):
        content(cache, items[0])
    assert held(cache) == 0


def test_an_object_that_never_ends_is_cut_off_where_it_should_end(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 1)
    cache = ShardCache(store, tmp_path / "cache", 10 * SIZE)
    with (store.root / "0.tar").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DigestMismatch, match=rf"0\.tar: SHA-256 is that of more than the {SIZE} bytes"):
        content(cache, items[0])
    assert held(cache) == 0


@needs_root
def test_a_disk_that_is_full_in_the_middle_of_a_download_is_named_and_goes_on_with_room(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path / "store", 1)
    data = np.random.default_rng(0).bytes(2**20)
    (store.root / "large.tar").write_bytes(data)
    item = CachedObject("large.tar", len(data), hashlib.sha256(data).hexdigest())
    with small_disk(tmp_path / "disk", "512k") as disk:
        cache = ShardCache(store, disk / "cache", 10 * len(data))
        with (
            pytest.raises(
                StoreError, match=rf"data\.cache_dir={disk}/cache cannot be used: No space left .*; free space"
            ),
            cache.open(item),
        ):
            pass
        assert held(cache) == 0
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        with cache.open(item) as descriptor:
            assert os.pread(descriptor, 2 * len(data), 0) == data


def test_a_missing_object_is_file_not_found_and_leaves_nothing(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path / "store", 1)
    cache = ShardCache(store, tmp_path / "cache", 10 * SIZE)
    with pytest.raises(FileNotFoundError):
        content(cache, CachedObject("9.tar", SIZE, "9" * 64))
    assert held(cache) == 0
    assert all(p.stat().st_size == 0 for p in cache.folder.iterdir())


def test_a_killed_download_holds_neither_lock_nor_room(tmp_path: Path) -> None:
    slow, items = make_store(tmp_path / "store", 3, seconds=600)
    cache = ShardCache(slow, tmp_path / "cache", 2 * SIZE)
    victim = FORK.Process(target=content, args=(cache, items[0]), daemon=True)
    victim.start()
    wait_for(lambda: any((tmp_path / "cache").glob("*.incoming/*")))
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(60)
    store = CountingStore(slow.root)
    cache = ShardCache(store, tmp_path / "cache", 2 * SIZE)
    with cache.open(items[1]), cache.open(items[2]):  # needs the room that the dead one had reserved
        assert held(cache) == 2 * SIZE
    assert content(cache, items[0]) == (store.root / "0.tar").read_bytes()


def test_a_forked_child_does_not_inherit_a_lock(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 2)
    cache = ShardCache(store, tmp_path / "cache", SIZE)
    release = FORK.Event()
    with cache.open(items[0]):
        child = FORK.Process(target=release.wait, daemon=True)
        child.start()
    assert content(cache, items[1]) == (store.root / "1.tar").read_bytes()
    assert not cache.path(items[0]).exists(), "evicted, although the child still has a descriptor of it"
    assert child.is_alive()
    release.set()
    child.join(60)
    assert child.exitcode == 0


def test_a_held_object_stays_whatever_forked_children_do(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 4)
    cache = ShardCache(store, tmp_path / "cache", 2 * SIZE)
    path = cache.hold(items[0])
    run_all([FORK.Process(target=content, args=(cache, item), daemon=True) for item in items[:2]])
    for item in items[1:]:
        content(cache, item)
    assert path.exists()


def test_a_discarded_copy_can_still_be_read_by_who_has_it(tmp_path: Path) -> None:
    store, items = make_store(tmp_path / "store", 1)
    cache = ShardCache(store, tmp_path / "cache", 10 * SIZE)
    with cache.open(items[0]) as descriptor:
        cache.discard(items[0])
        assert len(os.pread(descriptor, SIZE, 0)) == SIZE
    assert not cache.path(items[0]).exists()
    content(cache, items[0])
    assert len(store.downloads()) == 2


def test_a_file_evicted_between_opening_and_locking_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, items = make_store(tmp_path / "store", 1)
    cache = ShardCache(store, tmp_path / "cache", 10 * SIZE)
    content(cache, items[0])
    lock, pending = fcntl.flock, [True]

    def evict_first(descriptor: int, kind: int) -> None:
        if kind == fcntl.LOCK_SH and pending:
            pending.pop()
            cache.path(items[0]).unlink()
        lock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", evict_first)
    assert content(cache, items[0]) == (store.root / "0.tar").read_bytes()
    assert len(store.downloads()) == 2


def test_trouble_of_the_folder_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removed folder must not pass for an object that the store lacks, nor a full disk for the store's."""
    store, items = make_store(tmp_path / "store", 1)
    cache = ShardCache(store, tmp_path / "cache", 10 * SIZE)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            StoreError, match=r"data\.cache_dir=.*/cache .*No space left.*lower data\.cache_bytes=10000"
        ):
            content(cache, items[0])
    assert content(cache, items[0]) == (store.root / "0.tar").read_bytes()
    shutil.rmtree(cache.folder)
    with pytest.raises(StoreError, match=r"data\.cache_dir=.*/cache cannot be used: No such file or directory"):
        content(cache, items[0])
    cache.folder.mkdir()
    for function, answer in (("getuid", os.getuid() + 1), ("access", False)):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, lambda *words, answer=answer: answer)
            with pytest.raises(ValueError, match=r"data\.cache_dir=.*/cache belongs to another user or is read-only"):
                ShardCache(store, cache.folder, SIZE)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.cache_dir=.*/file cannot be used: File exists; choose another folder"):
        ShardCache(store, tmp_path / "file", SIZE)

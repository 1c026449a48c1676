"""What every store must do; run against a folder, against moto and against a real gateway."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipeline.store.base import Store


def check_store(store: Store, folder: Path) -> None:
    """Exercise one empty store."""
    check_objects(pickle.loads(pickle.dumps(store)), folder)
    check_absence(store, folder)
    check_listing(store)
    check_put_if_absent(store)


def check_objects(store: Store, folder: Path) -> None:
    data = bytes(range(256)) * 5
    store.write("a/b c", data)
    assert store.read("a/b c") == data
    assert store.read("a/b c", 3, 4) == data[3:7]
    assert store.read("a/b c", 1270) == data[1270:]
    assert store.read("a/b c", 1270, 100) == data[1270:]
    assert store.read("a/b c", 1280) == store.read("a/b c", 9999, 5) == store.read("a/b c", 5, 0) == b""
    assert store.size("a/b c") == 1280
    assert store.exists("a/b c")
    assert store.read_to_file("a/b c", folder / "copy") == 1280
    assert (folder / "copy").read_bytes() == data
    (folder / "new").write_bytes(b"new")
    store.write_file("a/b c", folder / "new")
    assert store.read("a/b c") == b"new"
    store.write("empty", b"")
    assert store.read("empty") == b""
    assert store.size("empty") == 0
    store.delete("empty")
    store.delete("empty")
    assert not store.exists("empty")


def check_absence(store: Store, folder: Path) -> None:
    for ask in (store.read, store.size, lambda key: store.read_to_file(key, folder / "nothing")):
        with pytest.raises(FileNotFoundError):
            ask("no/such")
    assert not store.exists("no/such")
    assert not (folder / "nothing").exists()
    for key in ("", "/etc/passwd", "../outside", "a/../../b", "a//b", "a\0b"):
        with pytest.raises(ValueError, match="not a key inside the store"):
            store.write(key, b"")


def check_listing(store: Store) -> None:
    keys = [f"list/{number:04d}" for number in range(12)]
    for key in (*keys, "list-else", "lisp/x"):
        store.write(key, b"x")
    assert list(store.keys("list/")) == keys
    assert list(store.keys("list/000")) == keys[:10]
    assert set(store.keys("lis")) == {*keys, "list-else", "lisp/x"}
    assert {*keys, "a/b c"} <= set(store.keys())
    assert list(store.keys("nowhere/")) == list(store.sizes("nowhere/")) == []
    store.write("list/0001", b"twelve bytes")
    assert list(store.sizes("list/000"))[:3] == [("list/0000", 1), ("list/0001", 12), ("list/0002", 1)]
    path = store.local_path("list/0003")
    assert path is None or path.read_bytes() == b"x"


def check_put_if_absent(store: Store) -> None:
    assert store.put_if_absent("once/x", b"first")
    assert not store.put_if_absent("once/x", b"second")
    assert store.read("once/x") == b"first"
    with ThreadPoolExecutor(8) as pool:
        for number in range(5):
            won = list(pool.map(lambda i, n=number: store.put_if_absent(f"race/{n}", b"%d" % i), range(8)))
            assert sum(won) == 1
            assert store.read(f"race/{number}") == b"%d" % won.index(True)

"""A real object store behind a network that spoils many requests: right bytes, one winner, the same dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipeline.store.base import Retries
from data_pipeline.store.open import open_store
from data_pipeline.store.s3 import S3Store
from tests.data_pipeline.store.contract import check_store
from tests.data_pipeline.store.gateway import Gateway
from tests.faults import builds
from tests.faults.conftest import Undisturbed
from tests.tools import flaky_proxy
from tests.tools.flaky_proxy import FAULTS, FlakyProxy

pytestmark = pytest.mark.s3
TIMEOUT_S = 1.0


@pytest.fixture
def proxy(s3_gateway: Gateway, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """A proxy that is quiet until told otherwise; the environment points at it, `s3_uri` is its bucket."""
    with FlakyProxy(s3_gateway.endpoint, seed=11, share=0.0, stall_s=4 * TIMEOUT_S) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def store(proxy: FlakyProxy, s3_uri: str) -> S3Store:
    """The bucket through the proxy. A slow answer of a busy machine is no fault."""
    store = open_store(s3_uri, Retries(timeout_s=60.0))
    assert isinstance(store, S3Store)
    return store


def test_signed_requests_pass_the_quiet_proxy(store: S3Store, proxy: FlakyProxy, tmp_path: Path) -> None:
    check_store(store, tmp_path)
    assert proxy.requests > 50
    assert not proxy.injected


@pytest.mark.slow
def test_every_operation_gives_the_right_bytes_when_a_fifth_of_the_requests_fail(
    store: S3Store, proxy: FlakyProxy, tmp_path: Path
) -> None:
    proxy.share, store.retries = 0.2, Retries(timeout_s=TIMEOUT_S)
    check_store(store, tmp_path)
    for number in range(10):
        data = hashlib.sha256(b"%d" % number).digest() * 1000 * number
        store.write(f"o/{number}", data)
        assert store.read(f"o/{number}") == data
        assert store.read(f"o/{number}", 7, 1000) == data[7:1007]
        assert store.read_to_file(f"o/{number}", tmp_path / "o") == len(data)
        assert (tmp_path / "o").read_bytes() == data
    assert set(proxy.injected) == set(FAULTS)


@pytest.mark.parametrize("fault", [flaky_proxy.RESET_AFTER, flaky_proxy.STALL])
def test_put_if_absent_wins_although_the_answer_was_lost(fault: str, store: S3Store, proxy: FlakyProxy) -> None:
    if fault == flaky_proxy.STALL:
        store.retries = Retries(timeout_s=TIMEOUT_S)
    proxy.next_faults(fault)
    assert store.put_if_absent("record", b"mine")
    assert proxy.injected[fault] == 1
    assert proxy.methods["PUT"] == 2
    assert store.read("record") == b"mine"
    proxy.next_faults(fault)
    assert not store.put_if_absent("record", b"another's"), "the record was there before"
    assert store.read("record") == b"mine"


def test_one_of_many_writers_wins_and_knows_it(store: S3Store, proxy: FlakyProxy) -> None:
    """Eight writers with bytes of their own at one key; a third of the requests is spoiled, mostly after the commit."""
    proxy.share, proxy.faults = 0.33, (flaky_proxy.RESET_AFTER, flaky_proxy.SLOW_DOWN, flaky_proxy.CUT_UPLOAD)
    with ThreadPoolExecutor(8) as pool:
        for race in range(6):
            key = f"race/{race}"
            won = list(pool.map(lambda writer, key=key: store.put_if_absent(key, b"from %d" % writer), range(8)))
            assert won.count(True) == 1
            assert store.read(key) == b"from %d" % won.index(True)
    assert proxy.injected[flaky_proxy.RESET_AFTER] > 0


def test_a_large_file_in_parts(
    store: S3Store, proxy: FlakyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Multipart: create, five parts and complete, each of them spoiled once."""
    monkeypatch.setattr(S3Store, "part_bytes", 5 << 20)
    data = hashlib.shake_256(b"parts").digest((21 << 20) + 17)
    (tmp_path / "large").write_bytes(data)
    proxy.next_faults(
        *[fault for kind in (flaky_proxy.RESET_AFTER, flaky_proxy.SLOW_DOWN) for fault in (kind, None) * 7]
    )
    store.write_file("large", tmp_path / "large")
    assert proxy.injected[flaky_proxy.RESET_AFTER] == 7
    proxy.next_faults(flaky_proxy.CUT_ANSWER, flaky_proxy.CUT_ANSWER)
    assert store.read("large") == data


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_build_with_a_tenth_of_all_requests_spoiled(
    seed: int, s3_gateway: Gateway, s3_uri: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Manifest, sources, plan, shards and records go through the proxy; verification goes straight to the store."""
    source = open_store(f"{s3_uri}-source")
    for path in undisturbed.source.parent.iterdir():
        source.write_file(path.name, path)
    words = ["run.cpus=2", f"sources.timeout_s={TIMEOUT_S}"]
    with FlakyProxy(s3_gateway.endpoint, seed=seed, share=0.1, stall_s=4 * TIMEOUT_S) as proxy:
        builds.build(
            builds.build_command(source.uri(undisturbed.source.name), s3_uri, *words),
            tmp_path / "log",
            {"AWS_ENDPOINT_URL": proxy.endpoint},
        )
        assert sum(proxy.injected.values()) >= 8
        assert len(proxy.injected) >= 4
    builds.assert_same_and_proven(s3_uri, undisturbed.fingerprint)

"""Units that fail: what the message names, which record is left, and that the next build completes the unit."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.build.planner import make_plan
from data_pipeline.dataset.units import UnitConflict
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.fetch import Sources
from data_pipeline.source.trouble import MachineTrouble
from data_pipeline.store.base import StoreError
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub
from tests.data_pipeline.build.bench import Bench, contents, manifest_of, record_of


def test_rows_that_nothing_can_be_made_of_do_their_neighbours_no_harm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    (bench.source / "loop.mp4").symlink_to("loop.mp4")
    bad = ["s3://my bucket/x.mp4", "s3://[bucket/x.mp4", "loop.mp4", "x" * 300]
    manifest_of(bench, ["v000.mp4", *bad, "v001.mp4"])
    store = LocalStore(bench.folder / "out")
    bench.build(store)
    fates = record_of(store)["rows"]
    assert [fate["fate"] for fate in fates] == ["committed", *["quarantined"] * 4, "committed"]
    assert {fate["error"] for fate in fates[1:-1]} == {"missing"}
    assert "Invalid bucket name" in fates[1]["detail"]


def test_what_fails_a_unit_names_the_row_and_the_video(bench: Bench) -> None:
    manifest_of(bench, ["v000.mp4", "v001.mp4", "gone/v002.mp4"])
    errors: list[tuple[OSError, type[OSError]]] = [
        (MachineTrouble("no S3 credentials"), MachineTrouble),
        (OSError(errno.ENOSPC, "No space left on device"), MachineTrouble),  # of the disk here, not of the store
        (StoreError("down"), StoreError),
        (OSError(errno.EPERM, "Operation not permitted"), StoreError),
    ]
    for error, kind in errors:
        bench.sources = Failing(str(bench.source), "gone/v002.mp4", error)
        with pytest.raises(kind, match=rf"row 3, video 'gone/v002\.mp4': {re.escape(str(error))}"):
            bench.build(LocalStore(bench.folder / "out"))


class Failing(Sources):
    """One video meets an error."""

    def __init__(self, base: str, video: str, error: OSError) -> None:
        super().__init__(base, SourcesConfig())
        self.failing, self.error = video, error

    def fetch(self, video: str, folder: Path, most: int | None = None) -> Path:
        if video == self.failing:
            raise self.error
        return super().fetch(video, folder, most)


class StoreThatDies(LocalStore):
    """Fails at the n-th write."""

    def __init__(self, root: Path, writes: int) -> None:
        super().__init__(root)
        self.left = writes

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError("the store went away")

    def write(self, key: str, data: bytes) -> None:
        self._spend()
        super().write(key, data)

    def write_file(self, key: str, path: str | Path) -> None:
        self._spend()
        super().write_file(key, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._spend()
        return super().put_if_absent(key, data)


def test_a_unit_that_fails_anywhere_leaves_no_record_and_completes_later(bench: Bench) -> None:
    whole = LocalStore(bench.folder / "whole")
    bench.build(whole)
    for writes in range(5):  # three shards, the index, the record
        root = bench.folder / f"dying-{writes}"
        make_plan(bench.config, stub.ENCODER, LocalStore(root))
        with pytest.raises(OSError, match="went away"):
            bench.build(StoreThatDies(root, writes))
        store = LocalStore(root)
        assert not store.exists("units/000000.json")
        bench.build(store)
        assert contents(store) == contents(whole)


def test_runs_with_different_results_never_leave_a_false_record(bench: Bench) -> None:
    store = LocalStore(bench.folder / "out")
    bench.build(store)

    def other(path: Path, *, start: float | None = None, end: float | None = None) -> Any:
        result = stub.cut(path)
        result.clips = result.clips[:1]
        return result

    with pytest.raises(UnitConflict, match="is another run writing"):
        bench.build(store, other)
    assert not store.exists("units/000000.json"), "the shards are no longer those of the record"

"""One unit: every row's fate, shards WebDataset reads back, the same bytes every time, and a record that comes last."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import webdataset

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.packing import sample_key
from data_pipeline.build.planner import make_plan
from data_pipeline.build.unit import UnitReport, build_unit
from data_pipeline.cut.video import UndecodableVideo
from data_pipeline.dataset.index import read_unit_index
from data_pipeline.dataset.plan import Dataset, PlanRows
from data_pipeline.dataset.units import UnitConflict
from data_pipeline.source.config import SourcesConfig, SplitConfig
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.source.row_rules import split_of
from data_pipeline.source.trouble import MachineTrouble
from data_pipeline.store.base import StoreError
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub


class Bench:
    """A planned unit of eight stub sources that can be built into any store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = stub.write_sources(folder / "src", 8)
        self.config = ShardsConfig(
            source=str(self.source), output="unused", unit_rows=100, shard_bytes=1_000_000, split=SplitConfig(val=0.4)
        )
        object.__setattr__(self.config, "shard_bytes", 80_000)  # below the least a user may set, to get three shards
        self.built = 0
        self.sources = Sources(str(self.source), self.config.sources)

    def build(self, store: LocalStore, cut: Any = stub.cut) -> UnitReport:
        dataset = Dataset(store, make_plan(self.config, stub.ENCODER, store).plan)
        scratch = self.folder / f"scratch-{self.built}"
        scratch.mkdir()
        self.built += 1
        return build_unit(
            dataset,
            0,
            PlanRows(dataset).unit(0),
            self.config,
            cut=cut,
            sources=self.sources,
            scratch=scratch,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def contents(store: LocalStore) -> dict[str, str]:
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in store.keys()}


def record_of(store: LocalStore) -> dict[str, Any]:
    return dict(json.loads(store.read("units/000000.json")))


def test_every_row_has_a_fate_with_its_reason(bench: Bench) -> None:
    store = LocalStore(bench.folder / "out")
    report = bench.build(store)
    fates = {fate["id"]: fate for fate in record_of(store)["rows"]}
    assert [fate["row"] for fate in fates.values()] == list(range(1, 9))
    assert fates["v000.mp4"] == {"row": 1, "id": "v000.mp4", "fate": "committed", "clips": 2, "rejected": []}
    assert fates["v002.mp4"]["clips"] == 1
    assert fates["v002.mp4"]["rejected"] == [
        {"clip": 0, "start": 0.0, "end": 1.0, "reason": "too_short", "measured": {"value": 0.123457}}
    ]
    assert (fates["v003.mp4"]["fate"], fates["v003.mp4"]["reason"]) == ("rejected", "caption_missing")
    assert fates["v004.mp4"]["error"] == "undecodable"
    assert fates["v004.mp4"]["detail"] == "v004.mp4: broken on purpose", "no path of this machine"
    assert dict(report.fates) == {"committed": 6, "rejected": 1, "quarantined": 1}
    assert report.items == sum(fate.get("clips", 0) for fate in fates.values())
    assert str(bench.folder) not in store.read("units/000000.json").decode()


def test_webdataset_reads_every_sample_back(bench: Bench) -> None:
    store = LocalStore(bench.folder / "out")
    report = bench.build(store)
    record = record_of(store)
    urls = [str(store.local_path(shard["name"])) for shard in record["shards"]]
    assert len(urls) == 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    index = read_unit_index(store.read("units/000000.arrow")).to_pylist()
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in index]
    for sample, row in zip(samples, index, strict=True):
        described = json.loads(sample["json"])
        assert described["id"] == row["source"]
        number = int(row["source"][1:4])
        assert sample["txt"].decode() == f"caption of {number}"
        original = stub.cut(bench.source / row["source"])
        (clip,) = [clip for clip in original.clips if clip.number == row["clip"]]
        assert sample["mp4"] == clip.data
        assert described["measures"] == {"motion": 1.5}
        assert (described["start"], described["end"]) == (row["start"], row["end"]) == (clip.start, clip.end)
        assert (described["row"], described["split"]) == (row["row"], row["split"]) == (number + 1, split_of_row(row))
        assert (described["phash"], row["phash"]) == (clip.phash, int(clip.phash, 16))
        data = store.read(record["shards"][row["shard"]]["name"])
        assert data[row["video_offset"] :][: row["video_size"]] == clip.data
    for shard in record["shards"]:
        data = store.read(shard["name"])
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        assert len(data) <= 80_000
    for number, shard in enumerate(record["shards"]):
        splits = Counter(row["split"] for row in index if row["shard"] == number)
        assert (shard["samples"], shard["splits"]) == (splits.total(), splits)
    assert report.bytes == sum(store.size(shard["name"]) for shard in record["shards"])


def split_of_row(row: dict[str, Any]) -> str:
    """By the definition of a share: a hash of the video's name as a number from 0 to 1, below `split.val=0.4`."""
    share = int(hashlib.sha256(f"split:{row['source']}".encode()).hexdigest()[:16], 16) / 16**16
    return "val" if share < 0.4 else "train"


class Downloads(Sources):
    """Every source is a download: a file of a random name in the scratch folder. Notes how many lie there at a time."""

    most = 0

    def __init__(self, base: str, config: SourcesConfig) -> None:
        super().__init__(base, config)
        self.asked: list[str] = []

    def copies(self, video: str) -> bool:
        return True

    def fetch(self, video: str, folder: Path, most: int | None = None) -> Path:
        self.asked.append(video)
        if not Path(self.base, video).exists():
            raise SourceProblem("missing", "there is no such file")
        path = folder / f"source-{os.urandom(4).hex()}.mp4"
        shutil.copy(Path(self.base, video), path)
        self.most = max(self.most, len(list(folder.glob("source-*"))))
        return path


def test_downloads_go_as_they_are_used_and_leave_no_trace_in_the_record(bench: Bench) -> None:
    def cut(path: Path, *, start: float | None = None, end: float | None = None) -> Any:
        """As the real one does, it calls a file by its name."""
        try:
            return stub.cut(path)
        except UndecodableVideo as error:
            raise UndecodableVideo(str(error).replace(str(path), path.name)) from error

    local, store = LocalStore(bench.folder / "local"), LocalStore(bench.folder / "out")
    bench.build(local, cut)
    bench.sources = downloads = Downloads(str(bench.source), bench.config.sources)
    bench.build(store, cut)
    assert contents(store) == contents(local), "the same bytes, whatever the files were called meanwhile"
    assert downloads.most <= 1 + bench.config.run.downloads, "the one that is cut, and the next ones"
    assert list((bench.folder / f"scratch-{bench.built - 1}").iterdir()) == [], "shards go when they are in the store"


def test_a_row_is_cut_in_its_window_and_quarantined_with_its_cause(bench: Bench) -> None:
    """Rows of one video are in one split, whatever they are called; further columns come along."""
    manifest = bench.folder / "src" / "m.csv"
    lines = [f"v000.mp4,r{n},a caption,{n},{n + 2.5},BSD" for n in range(12)]
    manifest.write_text("\n".join(["video,id,caption,start,end,license", *lines]))
    bench.config = ShardsConfig(source=str(manifest), output="unused", unit_rows=100, split=SplitConfig(val=0.4))
    asked: list[tuple[float | None, float | None]] = []

    def cut(path: Path, *, start: float | None = None, end: float | None = None) -> Any:
        asked.append((start, end))
        if start == 11.0:
            raise UndecodableVideo(f"{path.name}: not done after 900 s", "timeout")
        return stub.cut(path)

    store = LocalStore(bench.folder / "out")
    bench.build(store, cut)
    assert asked == [(n, n + 2.5) for n in range(12)]
    index = read_unit_index(store.read("units/000000.arrow")).to_pylist()
    assert {row["split"] for row in index} == {split_of_row({"source": "v000.mp4"})}
    last = record_of(store)["rows"][-1]
    assert (last["error"], last["detail"]) == ("timeout", "v000.mp4: not done after 900 s")
    data = store.read(record_of(store)["shards"][0]["name"])
    assert data.count(b'"extra":{"license":"BSD"}') == len(index) == 22


def test_adjacent_rows_of_a_video_share_one_fetch(bench: Bench) -> None:
    """Each row is cut by itself, so the bytes are those of local files, which are not fetched at all."""
    lines = [
        *(f"v000.mp4,r{n},a caption,{n},{n + 2}" for n in range(5)),
        "v001.mp4,r5,,0,1",  # refused without its video
        *(f"v002.mp4,r{n},{'' if n == 7 else 'a caption'},{n},{n + 2}" for n in range(6, 9)),
        "v004.mp4,r9,a caption,,",
        "v004.mp4,r10,a caption,1,2",  # broken, both
        "v000.mp4,r11,a caption,9,10",  # not beside the others
        *("v009.mp4,r12,a caption,,", "v009.mp4,r13,a caption,1,2"),  # missing, both
    ]
    manifest = bench.source / "m.csv"
    manifest.write_text("\n".join(["video,id,caption,start,end", *lines, ""]))
    bench.config = ShardsConfig(source=str(manifest), output="unused", unit_rows=100)
    local, store = LocalStore(bench.folder / "local"), LocalStore(bench.folder / "out")
    bench.build(local)
    bench.sources = downloads = Downloads(str(bench.source), bench.config.sources)
    bench.build(store)
    assert contents(store) == contents(local)
    assert sorted(downloads.asked) == ["v000.mp4", "v000.mp4", "v002.mp4", "v004.mp4", "v009.mp4"]
    assert [fate["fate"] for fate in record_of(store)["rows"]].count("quarantined") == 4
    assert list((bench.folder / f"scratch-{bench.built - 1}").iterdir()) == []


def manifest_of(bench: Bench, videos: list[str]) -> None:
    """The bench's rows are these videos now."""
    manifest = bench.source / "m.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([["video", "caption"], *([video, "a caption"] for video in videos)])
    bench.config = ShardsConfig(source=str(manifest), output="unused", unit_rows=100)


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


def test_two_builds_give_the_same_bytes(bench: Bench) -> None:
    one, two = LocalStore(bench.folder / "one"), LocalStore(bench.folder / "two")
    bench.build(one)
    bench.build(two)
    assert contents(one) == contents(two)
    bench.build(two)  # a second driver by mistake
    assert contents(one) == contents(two)


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


def test_keys_are_safe_readable_and_unique() -> None:
    hostile = ["../../etc/passwd", "a.b.c", "", "x" * 500, "ü/ñ", "a b", "a-b", "--rf", "a\nb\0", "<script>"]
    keys = [sample_key(identity, clip) for identity in hostile for clip in (0, 1)]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert len(key) + len(".json") <= 100, "a ustar name"
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        assert not key.startswith("-")
    assert sample_key("cats/one.mp4", 7).startswith("cats-one-mp4-")


def test_the_split_follows_the_video_and_has_the_shares_asked_for() -> None:
    config = SplitConfig(val=0.1, test=0.05)
    splits = [split_of(f"video-{n}", "", config) for n in range(20_000)]
    assert abs(splits.count("val") / 20_000 - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5
    assert abs(splits.count("test") / 20_000 - 0.05) < 4 * (0.05 * 0.95 / 20_000) ** 0.5
    assert split_of("video-1", "test", config) == "test"
    grown = SplitConfig(val=0.2, test=0.05)
    assert all(split_of(f"video-{n}", "", grown) == "val" for n in range(2000) if splits[n] == "val")


def test_samples_of_a_unit_are_mapped_without_copy(bench: Bench) -> None:
    store = LocalStore(bench.folder / "out")
    bench.build(store)
    with pa.memory_map(str(store.local_path("units/000000.arrow"))) as source:
        before = pa.total_allocated_bytes()
        table = pa.ipc.open_file(source).read_all()
        assert table.num_rows > 0
        assert pa.total_allocated_bytes() == before

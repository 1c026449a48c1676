"""Shards at their limit of bytes, counted with Python's own tar writer."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from data_pipeline.build.packing import Packer
from data_pipeline.dataset.fields import canonical_json
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub

ROW = PlanRow(row=1, id="v", video="v", caption="some caption", start=None, end=None, label="x", split="", extra="")


def archive_bytes(clips: int, size: int) -> int:
    """Bytes of a shard: its members, and the two empty blocks at its end, which Python rounds up to 10240."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(clips):
            for name, length in (("json", len(canonical_json({}))), ("mp4", size), ("txt", len("some caption"))):
                info = tarfile.TarInfo(f"v-{number}.{name}")
                info.size = length
                tar.addfile(info, io.BytesIO(bytes(length)))
        return tar.offset + 2 * tarfile.BLOCKSIZE


@pytest.mark.parametrize(("spare", "samples"), [(0, [2, 1]), (-1, [1, 1, 1]), (10**6, [3])])
def test_a_shard_is_as_large_as_it_may_be_and_no_byte_larger(spare: int, samples: list[int], tmp_path: Path) -> None:
    (tmp_path / "v").write_text("clip 1000\nclip 1000\nclip 1000")
    (tmp_path / "scratch").mkdir()
    store = LocalStore(tmp_path / "out")
    limit = archive_bytes(2, 1000) + spare
    packer = Packer(7, limit, store, tmp_path / "scratch")
    for clip, split in zip(stub.cut(tmp_path / "v").clips, ("train", "val", "train"), strict=True):
        packer.add(clip, ROW, split, {})
    packer.close()
    assert [shard.samples for shard in packer.shards] == samples
    assert [shard.bytes for shard in packer.shards] == [archive_bytes(count, 1000) for count in samples]
    assert [store.size(shard.name) for shard in packer.shards] == [shard.bytes for shard in packer.shards]
    assert [shard.name for shard in packer.shards] == [f"shards/000007-{n:03d}.tar" for n in range(len(samples))]
    assert [sample.shard for sample in packer.samples] == [n for n, count in enumerate(samples) for _ in range(count)]
    splits = ["train", "val", "train"]
    for shard in packer.shards:
        own, splits = splits[: shard.samples], splits[shard.samples :]
        assert shard.splits == {name: own.count(name) for name in sorted(set(own))}
    assert list((tmp_path / "scratch").iterdir()) == [], "a shard goes when it is in the store"

"""Clips whose index lies cost their row, and not the memory of the process that reads them."""

from __future__ import annotations

import json
import zlib
from fractions import Fraction
from pathlib import Path

from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.tar import encoded
from data_pipeline.latents.clips import ClipReader, ShardReader
from data_pipeline.latents.config import WindowsConfig


def test_more_frames_than_bytes_are_damage(tmp_path: Path) -> None:
    raw = encoded([("k.json", b"{}"), ("k.mp4", b"a video"), ("k.txt", b"")])
    (tmp_path / "shard.tar").write_bytes(raw)
    extra = {"offset": 0, "size": len(raw), "crc32": zlib.crc32(raw), "phash": 0}
    extra |= {"frames": 2**31 - 1, "height": 64, "width": 64}
    nothing = {"caption": None, "label": "", "split": "train"}
    row = PlanRow(row=1, id="k", video="shard.tar", start=0.0, end=1.0, extra=json.dumps(extra), **nothing)
    shard = ShardReader(tmp_path / "shard.tar")
    found = ClipReader(shard, WindowsConfig().plan_settings(16, 64), Fraction(8)).read(row)
    shard.close()
    assert isinstance(found, RowFate)
    assert (found.fate, found.error) == ("quarantined", "damaged")
    assert found.detail.endswith(f"the index says that the clip has {2**31 - 1} frames, in {len(raw)} bytes")

"""One planned unit that tests build into any store, and what they read of the result."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.unit import UnitReport, build_unit
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.source.config import SourcesConfig, SplitConfig
from data_pipeline.source.fetch import SourceProblem, Sources
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


def contents(store: LocalStore) -> dict[str, str]:
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in store.keys()}


def record_of(store: LocalStore) -> dict[str, Any]:
    return dict(json.loads(store.read("units/000000.json")))


def manifest_of(bench: Bench, videos: list[str]) -> None:
    """The bench's rows are these videos now."""
    manifest = bench.source / "m.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([["video", "caption"], *([video, "a caption"] for video in videos)])
    bench.config = ShardsConfig(source=str(manifest), output="unused", unit_rows=100)


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

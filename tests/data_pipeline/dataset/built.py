"""A dataset built in this process from stub sources, verified after each step; and a power cut at a chosen write."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.dataset.config import Duplicates
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.ledger import Ledger
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.retry import plan_retry
from data_pipeline.dataset.takedown import taken_down
from data_pipeline.dataset.units import committed_units
from data_pipeline.dataset.verify import verify
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub


class Built:
    """A dataset built in this process: what the builder does, without Ray."""

    def __init__(self, folder: Path, duplicates: Duplicates = Duplicates.ERROR) -> None:
        self.folder = folder
        self.store = LocalStore(folder / "out")
        self.duplicates = duplicates

    def build(self, source: Path, *, append: bool = False, retry: bool = False) -> Ledger:
        config = ShardsConfig(source=str(source), output=str(self.store.root), unit_rows=4, duplicates=self.duplicates)
        planned = make_plan(config, stub.ENCODER, self.store, append=append)
        current = Dataset(self.store, planned.plan)
        if retry:
            current = plan_retry(current, planned.parent)
        plan = current.plan
        worker = Worker(BuildJob(config, plan, planned.base, taken_down(self.store)), stub.cut)
        missing = deque(sorted(set(range(plan.units)) - committed_units(self.store)))
        while missing:
            worker.run(missing.popleft())
        description = finalize(current)
        assert verify(self.store).problems == []
        return description.ledger

    @property
    def current(self) -> Dataset:
        """The dataset with the plan that lies on the store now."""
        return Dataset.open(self.store)

    def samples(self) -> dict[str, str]:
        """Sample key -> the bytes of its video, read through the index."""
        import pyarrow as pa

        shards = [shard["name"] for shard in json.loads(self.store.read("dataset.json"))["shards"]]
        rows = pa.ipc.open_file(str(self.store.local_path("index.arrow"))).read_all().to_pylist()
        return {
            row["key"]: self.store.read(shards[row["shard"]], row["video_offset"], row["video_size"]).hex()
            for row in rows
        }

    def bytes_of(self, prefix: str) -> dict[str, bytes]:
        return {key: self.store.read(key) for key in self.store.keys(prefix)}


@contextmanager
def power_cut_at(key: str) -> Iterator[None]:
    """The write of one object does not happen any more, nor anything after it."""
    original = LocalStore.write

    def dying(store: LocalStore, name: str, data: bytes) -> None:
        if name == key:
            raise OSError("power cut")
        original(store, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "write", dying)
        with pytest.raises(OSError, match="power cut"):
            yield

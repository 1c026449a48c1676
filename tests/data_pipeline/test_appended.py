"""A dataset that was really built, appended to, and read by a loader that had begun before."""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import ENCODER_VERSION, cut_clips
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.units import committed_units
from data_pipeline.read.config import DataConfig
from data_pipeline.read.loader import ClipLoader, Position
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.dataset.tiny_dataset import real_video


def build(folder: Path, name: str, video: str, append: bool) -> None:
    """What the builder does, in this process."""
    (folder / f"{name}.csv").write_text(
        f"id,video,caption,split\n{name},{real_video(video)},a caption,train\n", "utf-8"
    )
    clip = ClipConfig(short_side=72, min_seconds=0.5, max_seconds=1.0, min_short_side=72)
    store = LocalStore(folder / "shards")
    config = ShardsConfig(source=str(folder / f"{name}.csv"), output=str(store.root), clip=clip, unit_rows=1)
    planned = make_plan(config, ENCODER_VERSION, store, append=append)
    worker = Worker(BuildJob(config, planned.plan, planned.base), partial(cut_clips, config=clip))
    done = set(committed_units(store))
    for unit in set(range(planned.plan.units)) - done:
        worker.run(unit)
    finalize(Dataset(store, planned.plan))


def keys(loader: ClipLoader, begin: Position, batches: int) -> list[str]:
    """The keys of the samples that are read from a position on."""
    found = [key for batch in islice(loader.from_position(begin), batches) for key in batch.keys]
    loader.close()
    return found


def test_an_epoch_ends_as_it_began_and_the_next_one_has_what_was_appended(tmp_path: Path) -> None:
    build(tmp_path, "first", "bikes.mp4", append=False)
    settings = DataConfig(
        shards=str(tmp_path / "shards"), frames=4, image_size=32, global_batch=1, lanes=1, shuffle_window=3, workers=0
    )
    before = ClipLoader(settings)
    count, saved = len(before), before.identity
    expected = keys(before, Position(0, 1), count - 1)
    build(tmp_path, "second", "carphone_pristine.mp4", append=True)
    grown = ClipLoader(settings)
    assert len(grown) > count > 1
    assert "the new ones are read from epoch 1 on" in grown.continue_from(saved, Position(0, 1))
    found = keys(grown, Position(0, 1), count - 1 + len(grown))
    assert found[: count - 1] == expected
    every = {grown.table[row].key for row in range(len(grown.table))}
    assert set(found[count - 1 :]) == every
    assert {key for key in every if key.startswith("second")}

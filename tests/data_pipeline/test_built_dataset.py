"""Reading what the builder writes: every clip, in both clip codecs, pixel for pixel what the cutter made."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.config import ClipConfig, Codec
from data_pipeline.cut.cutter import ENCODER_VERSION, cut_clips
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.plan import Dataset
from data_pipeline.read.config import DataConfig
from data_pipeline.read.loader import ClipLoader
from data_pipeline.read.sweep import iterate_clips
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.dataset.tiny_dataset import real_video
from tests.data_pipeline.read.test_clip_decoder import whole


@pytest.fixture(scope="module", params=[Codec.h264, Codec.mjpeg], ids=lambda codec: codec.value)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A dataset of two real videos, and the SHA-256 of each clip's decoded frames by caption and order."""
    folder = tmp_path_factory.mktemp("built")
    lines = ["video,caption,label,split"]
    lines += [f"{real_video('carphone_pristine.mp4')},a man in a car,talk,train"]
    lines += [f"{real_video('bikes.mp4')},bicycles in a street,ride,train"]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    clip = ClipConfig(short_side=72, min_seconds=1.0, max_seconds=2.5, min_short_side=72, codec=request.param, crf=8)
    config = ShardsConfig(source=str(folder / "manifest.csv"), output=str(folder / "out"), clip=clip)
    store = LocalStore(folder / "out")
    planned = make_plan(config, ENCODER_VERSION, store)
    worker = Worker(BuildJob(config, planned.plan, planned.base), partial(cut_clips, config=clip))
    for unit in range(planned.plan.units):
        worker.run(unit)
    finalize(Dataset(store, planned.plan))
    captions = {"a man in a car": "carphone_pristine.mp4", "bicycles in a street": "bikes.mp4"}
    return folder / "out", captions


def test_every_clip_is_read_as_the_cutter_encoded_it(built: tuple[Path, dict[str, str]]) -> None:
    root, captions = built
    codec = "mjpeg" if "mjpeg" in (root / "dataset.json").read_text() else "h264"
    clip = ClipConfig(short_side=72, min_seconds=1.0, max_seconds=2.5, min_short_side=72, codec=Codec(codec), crf=8)
    expected = {}
    for caption, name in captions.items():
        for cut in cut_clips(real_video(name), config=clip).clips:
            frames = whole(cut.data)[:8]
            expected[hashlib.sha256(frames.transpose(3, 0, 1, 2).tobytes()).hexdigest()] = caption
    sweep = iterate_clips(DataConfig(shards=str(root), frames=8, image_size=72, workers=0), "train", windows="first")
    found = {}
    for clips in sweep:
        assert clips.labels == [{"a man in a car": "talk", "bicycles in a street": "ride"}[c] for c in clips.captions]
        found[hashlib.sha256(np.ascontiguousarray(clips.video[0].numpy()).tobytes()).hexdigest()] = clips.captions[0]
    assert len(found) >= 4
    assert found == expected


def test_training_batches_come_from_it(built: tuple[Path, dict[str, str]]) -> None:
    root, captions = built
    config = DataConfig(shards=str(root), frames=8, image_size=64, global_batch=2, lanes=1, workers=1)
    loader = ClipLoader(config)
    running = loader.from_position()
    seen = {caption for _ in range(len(loader)) for caption in next(running).captions}
    loader.close()
    assert seen == set(captions)
    assert loader.bad_samples == []

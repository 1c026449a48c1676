"""Several captions of a row of a manifest, on their way through clips and latents to texts."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.cutter import ENCODER_VERSION, cut_clips
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.plan import Dataset
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.dataset.tiny_dataset import real_video
from tests.tools.extras import NEEDS_TRANSFORMERS
from tests.trainer.latents import corpus as videos
from tests.trainer.texts.corpus import config_of, encode_here, stored_texts

pytestmark = NEEDS_TRANSFORMERS


def test_a_column_of_captions_reaches_the_texts(encoder: Path, tmp_path: Path) -> None:
    rows = [
        {"video": str(real_video("bikes.mp4")), "caption": "bikes", "captions": ["two men", "bikes"], "split": "train"},
        {"video": str(real_video("carphone_pristine.mp4")), "caption": "a man", "split": "val"},
    ]
    (tmp_path / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = LocalStore(tmp_path / "shards")
    config = ShardsConfig(source=str(tmp_path / "videos.jsonl"), output=str(store.root), clip=videos.CLIP)
    planned = make_plan(config, ENCODER_VERSION, store)
    worker = Worker(BuildJob(config, planned.plan, planned.base), partial(cut_clips, config=videos.CLIP))
    for unit in range(planned.plan.units):
        worker.run(unit)
    finalize(Dataset(store, planned.plan))
    model = videos.save_model(tmp_path / "model")
    latents = tmp_path / "latents"
    assert videos.encode_here(videos.config_of(model, store.root, latents)).dataset is not None
    assert encode_here(config_of(encoder, latents, tmp_path / "texts")).dataset is not None
    assert sorted(caption for _, caption, _ in stored_texts(tmp_path / "texts")) == ["", "a man", "bikes", "two men"]

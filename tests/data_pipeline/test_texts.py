"""The captions of a dataset of latents, and the plan of their texts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.index import TextRow
from data_pipeline.dataset.plan import Plan
from data_pipeline.dataset.tar import encoded
from data_pipeline.dataset.text_records import TextSettings
from data_pipeline.dataset.text_tensors import wrong_texts
from data_pipeline.store.local import LocalStore
from data_pipeline.texts.planner import missing_captions, plan_texts
from data_pipeline.texts.source import Captions, distinct_captions
from tests.data_pipeline.read.latent_reading import stored_samples, write


def settings() -> TextSettings:
    return TextSettings(encoder="e", model="m", width=4, max_tokens=8, empty_tokens=2, dtype=LatentDtype.fp16)


def test_the_captions_of_all_samples_are_planned_once(tmp_path: Path) -> None:
    """They are held with offsets of 64 bits, because those of ten million clips are more than 2 GiB together."""
    latents = LocalStore(write(tmp_path / "latents"))
    expected = sorted({"", *(sample.caption for sample in stored_samples(latents.root).values())})
    found = distinct_captions(latents)
    assert found.texts.type == pa.large_string()
    assert found.texts.to_pylist() == expected
    output = LocalStore(tmp_path / "texts")
    half = Captions(found.texts[::2], "first")
    assert plan_texts(half, output, settings(), "v").new == len(half.texts)
    assert missing_captions(output, latents)[0].startswith(f"{len(expected) - len(half.texts)} captions of the latents")
    assert plan_texts(found, output, settings(), "v").new == len(expected) - len(half.texts)
    assert missing_captions(output, latents) == []
    parts = [pq.read_table(path).column("caption") for path in sorted((output.root / "plan").glob("*.parquet"))]
    assert {part.type for part in parts} == {pa.string()}
    assert sorted(caption for part in parts for caption in part.to_pylist()) == expected


def test_a_caption_that_is_no_text_is_a_problem_like_any_other(tmp_path: Path) -> None:
    key = hashlib.sha256(b"a caption").hexdigest()
    tensors = safetensors.numpy.save({"tokens": np.zeros((3, 4), np.float16)})
    raw = encoded([(f"{key}.json", b"{}"), (f"{key}.safetensors", tensors), (f"{key}.txt", b"\xff caption")])
    (tmp_path / "shard.tar").write_bytes(raw)
    values = dict.fromkeys(("shard", "offset", "video_offset", "video_size", "crc32", "row", "caption_tokens"), 0)
    row = TextRow(key=key, size=len(raw), split="train", tokens=3, **values)
    plan = Plan(encoder="v", settings=settings().to_settings(), segments=())
    found = list(wrong_texts(tmp_path / "shard.tar", [row], plan))
    assert found == [f"sample {key} holds another caption than its key says"]

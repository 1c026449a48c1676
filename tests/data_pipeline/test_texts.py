"""The captions of a dataset of latents, the plan of their texts, and what is read of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.index import TextRow
from data_pipeline.dataset.plan import Plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.shard_writer import ShardWriter
from data_pipeline.dataset.tar import encoded
from data_pipeline.dataset.text_records import TextSettings, UnitTexts
from data_pipeline.dataset.text_tensors import wrong_texts
from data_pipeline.dataset.units import commit_unit
from data_pipeline.dataset.verify import verify
from data_pipeline.read.config import LatentDataConfig
from data_pipeline.read.texts import Texts
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


@pytest.fixture
def texts(tmp_path: Path) -> LocalStore:
    """A dataset of texts without an encoder: the embeddings of a caption are so many rows of its length."""
    store, captions = LocalStore(tmp_path / "texts"), ["", "a man", "two bikes"]
    dataset = plan_texts(Captions(pa.array(captions, pa.large_string()), "i"), store, settings(), "v").dataset
    (tmp_path / "scratch").mkdir()
    writer, samples = ShardWriter(0, 10**6, store, tmp_path / "scratch", ".safetensors"), []
    rows = PlanRows(dataset).unit(0)
    for row, caption in zip(rows, captions, strict=True):
        payload = safetensors.numpy.save({"tokens": np.full((2, 4), len(caption), np.float16)})
        place = writer.add(row.id, "train", description=b"{}", payload=payload, caption=caption.encode())
        key = {"key": row.id, "split": "train", "row": row.row}
        samples.append(TextRow(**key, tokens=2, caption_tokens=2, **asdict(place)))
    writer.close()
    fates = [RowFate.committed(row, 1) for row in rows]
    of_unit = UnitTexts(device="cpu", tokens=6, truncated=0)
    commit_unit(dataset, 0, shards=writer.shards, samples=samples, fates=fates, texts=of_unit)
    finalize(dataset)
    return store


def test_the_embeddings_of_a_caption_are_found_by_its_text(texts: LocalStore) -> None:
    assert verify(texts).problems == []
    found = Texts(LatentDataConfig(shards="unused", text=str(texts.root)))
    assert found.read("two bikes", "k").tolist() == [[9.0] * 4] * 2
    assert found.empty.tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["video_size"]), "its index.arrow has no column video_size; launch/verify"),
        (lambda table: table.set_column(0, "key", pa.array(["-1" * 32] * 3)), "has the key '-1-1.*is no SHA-256; "),
    ],
)
def test_an_index_that_is_none_of_texts_is_refused(
    change: Callable[[pa.Table], pa.Table], message: str, texts: LocalStore
) -> None:
    table = change(pa.ipc.open_file(pa.BufferReader(texts.read("index.arrow"))).read_all())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    index = sink.getvalue().to_pybytes()
    texts.write("index.arrow", index)
    description = json.loads(texts.read("dataset.json"))
    description["index"] |= {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()}
    texts.write("dataset.json", json.dumps(description).encode())
    with pytest.raises(ValueError, match=message):
        Texts(LatentDataConfig(shards="unused", text=str(texts.root)))

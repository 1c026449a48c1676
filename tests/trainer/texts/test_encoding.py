"""Encoded captions against transformers called directly; each caption once; the same bytes after an interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from data_pipeline.dataset.description import read_dataset
from data_pipeline.dataset.kind import TEXTS
from data_pipeline.dataset.units import read_record
from data_pipeline.dataset.verify import verify
from data_pipeline.store.local import LocalStore
from data_pipeline.texts.planner import missing_captions
from tests.tools.extras import NEEDS_TRANSFORMERS
from tests.trainer.latents.corpus import contents
from tests.trainer.texts.corpus import CLIPS, LONG, NEW, config_of, distinct, encode_here, save_latents, stored_texts
from tests.trainer.texts.tiny_encoder import LIMIT, WIDTH, expected, save_encoder
from trainer.texts.encoding import plan_text_encoding
from trainer.texts.worker import TextWorker

pytestmark = NEEDS_TRANSFORMERS


def test_every_distinct_caption_is_there_once_as_transformers_encodes_it_alone(encoder: Path, texts: Path) -> None:
    found = stored_texts(texts)
    assert sorted(caption for _, caption, _ in found) == distinct(CLIPS)
    for key, caption, tokens in found:
        assert key == hashlib.sha256(caption.encode()).hexdigest()
        torch.testing.assert_close(tokens, expected(encoder, caption), rtol=0, atol=2e-6)
    assert next(tokens for _, caption, tokens in found if not caption).shape == (2, WIDTH)
    assert verify(LocalStore(texts)).problems == []


def test_the_units_are_ranges_of_the_sorted_captions(texts: Path) -> None:
    planned = [
        table for file in sorted((texts / "plan").glob("*.parquet")) for table in pq.read_table(file).to_pylist()
    ]
    assert [row["caption"] for row in planned] == distinct(CLIPS)
    rows = [[fate.id for fate in read_record(LocalStore(texts), unit).rows] for unit in range(3)]
    assert rows == [[row["id"] for row in planned[4 * unit : 4 * unit + 4]] for unit in range(3)]


def test_dataset_json_says_what_was_cut_and_by_which_encoder(texts: Path, captioned: Path) -> None:
    description = read_dataset(LocalStore(texts))
    assert description.kind is TEXTS
    its = description.texts
    assert its is not None
    assert (its.width, its.max_tokens, its.empty_tokens, its.model, its.truncated) == (WIDTH, LIMIT, 2, "bert", 1)
    stored = {caption: len(tokens) for _, caption, tokens in stored_texts(texts)}
    assert stored[LONG.strip()] == LIMIT
    assert its.tokens == sum(stored.values())
    assert its.latents == (json.loads((captioned / "dataset.json").read_text())["index"]["sha256"],)


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_sixteen_bits_and_fewer_tokens(
    encoder: Path, captioned: Path, tmp_path: Path, dtype: str, kind: torch.dtype
) -> None:
    encode_here(config_of(encoder, captioned, tmp_path, f"stored.dtype={dtype}", "text.max_tokens=5"))
    for _, caption, tokens in stored_texts(tmp_path):
        wanted = expected(encoder, caption, max_tokens=5)
        assert tokens.dtype is kind
        assert len(wanted) <= 5
        torch.testing.assert_close(tokens.float(), wanted.to(kind).float(), rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("units", [0, 1, 3])
def test_an_encoding_that_was_killed_goes_on_to_the_same_bytes(
    encoder: Path, captioned: Path, texts: Path, tmp_path: Path, units: int
) -> None:
    config = config_of(encoder, captioned, tmp_path, "stored.dtype=fp32")
    assert encode_here(config, most_units=units).dataset is None
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("units/*.json")}
    assert len(done) == units
    assert encode_here(config).dataset is not None
    assert contents(LocalStore(tmp_path)) == contents(LocalStore(texts))
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a committed unit is not encoded again"


def test_new_captions_become_new_units_and_nothing_is_encoded_again(
    encoder: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(texts, tmp_path / "texts"))
    latents = save_latents(tmp_path / "latents", [*CLIPS, *NEW])
    assert len(missing_captions(LocalStore(output), LocalStore(latents))) == 1
    before = {path.name: path.read_bytes() for path in (output / "units").iterdir()}
    result = encode_here(config_of(encoder, latents, output, "stored.dtype=fp32"))
    assert "the captions have changed: 1 new" in capsys.readouterr().out
    assert result.plan.units == len(before) // 2 + 1
    assert {name: (output / "units" / name).read_bytes() for name in before} == before
    assert sorted(caption for _, caption, _ in stored_texts(output)) == distinct([*CLIPS, *NEW])
    assert missing_captions(LocalStore(output), LocalStore(latents)) == []
    assert verify(LocalStore(output)).problems == []


def test_another_encoder_or_setting_on_the_same_output_is_refused_before_a_caption_is_read(
    captioned: Path, encoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.texts.encoding.distinct_captions", lambda *_: pytest.fail("captions were read"))
    other = save_encoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"(?s)planned with other settings.*encoder.digest: "):
        encode_here(config_of(other, captioned, texts, "stored.dtype=fp32"))
    with pytest.raises(ValueError, match=r"stored.dtype: fp32 -> fp16"):
        encode_here(config_of(encoder, captioned, texts))


def test_a_worker_with_another_encoder_or_other_programs_encodes_nothing(
    captioned: Path, encoder: Path, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "out")
    job, (first, *_) = plan_text_encoding(config_of(encoder, captioned, store.root), store)
    other = config_of(save_encoder(tmp_path / "other", seed=1), captioned, store.root)
    with pytest.raises(ValueError, match=r"is another encoder here \([0-9a-f]{12}\) than in the plan \([0-9a-f]{12}\)"):
        TextWorker(replace(job, config=other)).run(first)
    with pytest.raises(ValueError, match="the plan was made with older; install the same"):
        TextWorker(replace(job, plan=replace(job.plan, encoder="older"))).run(first)
    assert not list(store.keys("shards/"))


def test_the_proof_finds_a_value_that_has_changed(texts: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(texts, tmp_path / "texts"))
    shard = output / "shards" / "000001-000.tar"
    data = bytearray(shard.read_bytes())
    data[1600] ^= 1
    shard.write_bytes(data)
    assert any("000001-000.tar" in problem for problem in verify(LocalStore(output)).problems)


def test_a_value_that_the_type_cannot_hold_is_rejected_with_the_reason(
    encoder: Path, captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.texts.encoder import TextEncoder

    plain = TextEncoder.encode
    monkeypatch.setattr(
        TextEncoder, "encode", lambda self, ids, batch: [1e6 * text for text in plain(self, ids, batch)]
    )
    result = encode_here(config_of(encoder, captioned, tmp_path))
    assert result.dataset is not None
    assert result.dataset.rows.rejected == {"too_large": len(distinct(CLIPS))}


def test_a_caption_that_was_damaged_under_its_latents_is_refused_by_its_sample(
    encoder: Path, captioned: Path, tmp_path: Path
) -> None:
    """Another letter is no damage of the archive, so the checksum alone shows it."""
    latents = Path(shutil.copytree(captioned, tmp_path / "latents"))
    (shard,) = [file for file in (latents / "shards").iterdir() if file.read_bytes().count(b"caption of 1")]
    shard.write_bytes(shard.read_bytes().replace(b"caption of 1", b"caption of 7"))
    with pytest.raises(ValueError, match=rf"{shard.name}: sample held-01-\S+ has another checksum than in the index"):
        encode_here(config_of(encoder, latents, tmp_path / "texts"))

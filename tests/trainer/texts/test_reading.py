"""Captions beside latents: which one an example has, its embeddings and padding, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.read.batches import Position
from data_pipeline.read.config import LatentDataConfig
from data_pipeline.read.latent_loader import LatentBatch, LatentLoader
from data_pipeline.read.shard_files import ShardFiles
from tests.data_pipeline.latents_dataset import MadeUpClip
from tests.tools.extras import NEEDS_TRANSFORMERS
from tests.trainer.diffusion.cases import tiny_config
from tests.trainer.texts.corpus import CLIPS, NEW, config_of, distinct, encode_here, save_latents, stored_texts
from tests.trainer.texts.tiny_encoder import LIMIT, WIDTH, save_encoder
from trainer.diffusion.stored_latents import StoredLatents, TrainingLatents
from trainer.distributed import Ranks

pytestmark = NEEDS_TRANSFORMERS

SEED = 3
LONE = Ranks(0, 1, 0, torch.device("cpu"), None)


def reading(latents: Path, texts: Path | str, **changes: Any) -> LatentDataConfig:
    settings: dict[str, Any] = {
        "shards": str(latents),
        "text": str(texts),
        "global_batch": 4,
        "seed": SEED,
        "workers": 0,
    }
    return LatentDataConfig(**settings | changes)


def batches(config: LatentDataConfig, count: int, position: Position | None = None) -> list[LatentBatch]:
    loader = LatentLoader(config)
    try:
        return list(islice(loader.from_position(position), count))
    finally:
        loader.close()


def captions_of(key: str) -> list[str]:
    """All captions of a sample, from the clips that were made up."""
    (clip,) = [clip for clip in CLIPS if key.startswith(clip.key)]
    return list(dict.fromkeys([clip.caption, *clip.captions]))


def chosen(captions: list[str], key: str, epoch: int) -> str:
    """The formula of docs/texts.md, written down again."""
    name = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    counter = np.array([0, name, epoch, 0], np.uint64)
    word = int(np.random.Philox(key=np.array([SEED, 6], np.uint64), counter=counter).random_raw())
    return captions[word * len(captions) // 2**64] if len(captions) > 1 else captions[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_example_has_one_of_its_captions_and_its_embeddings(captioned: Path, texts: Path, workers: int) -> None:
    stored = {caption: tokens for _, caption, tokens in stored_texts(texts)}
    seen: dict[str, set[str]] = {}
    for batch in batches(reading(captioned, texts, workers=workers), 40):  # 20 samples an epoch
        assert batch.text is not None
        assert batch.text_mask is not None
        lengths = [len(stored[caption]) for caption in batch.captions]
        assert batch.text.shape == (4, max(lengths), WIDTH)
        epoch = batch.position.epoch if batch.position.consumed else batch.position.epoch - 1
        for place, (key, caption) in enumerate(zip(batch.keys, batch.captions, strict=True)):
            assert caption == chosen(captions_of(key), key, epoch)
            seen.setdefault(key, set()).add(caption)
            assert torch.equal(batch.text[place, : lengths[place]], stored[caption])
            assert not batch.text[place, lengths[place] :].any()
            assert batch.text_mask[place].tolist() == [n < lengths[place] for n in range(max(lengths))]
    assert all(seen[key] == set(captions_of(key)) for key in seen if key.startswith("one-"))
    assert any(len(captions) == 3 for captions in seen.values()), "captions are drawn anew in each epoch"


def test_the_line_about_the_texts_says_how_many_were_cut_to_what(captioned: Path, texts: Path) -> None:
    """One caption of the corpus is longer than the encoder's limit."""
    loader = LatentLoader(reading(captioned, texts))
    count = len(distinct(CLIPS))
    line = f"{texts}: {count} captions of at most {LIMIT} tokens of width {WIDTH}; cut to that: 1"
    assert loader.describe().splitlines()[1] == line
    loader.close()


def test_texts_change_neither_the_order_nor_the_latents_and_reading_goes_on_anywhere(
    captioned: Path, texts: Path
) -> None:
    whole = batches(reading(captioned, texts), 9)
    plain = batches(reading(captioned, ""), 9)
    for batch, other in zip(whole, plain, strict=True):
        assert batch.keys == other.keys
        assert torch.equal(batch.structure, other.structure)
        assert other.text is None
    for batch, other in zip(whole[4:], batches(reading(captioned, texts), 5, whole[3].position), strict=True):
        assert (batch.captions, batch.keys) == (other.captions, other.keys)
        assert torch.equal(batch.text, other.text)  # type: ignore[arg-type]


def test_the_ranks_together_have_the_batch_of_one(captioned: Path, texts: Path) -> None:
    config = reading(captioned, texts)
    (whole,) = batches(config, 1)
    shares = []
    for rank in range(2):
        loader = LatentLoader(config, rank, 2)
        shares.append(next(loader.from_position()))
        loader.close()
    assert [caption for share in shares for caption in share.captions] == whole.captions


def test_workers_talk_to_both_stores_over_connections_of_their_own(
    captioned: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker replaces the connection to the latents and the one to the texts, before it reads."""
    note = tmp_path / "note"

    def write_down(files: ShardFiles) -> None:
        with note.open("a") as file:
            file.write(f"{files.store.uri()} {os.getpid()}\n")

    monkeypatch.setattr(ShardFiles, "after_fork", write_down)
    batches(reading(captioned, texts, workers=1), 1)
    places, processes = zip(*[line.split() for line in note.read_text().splitlines()], strict=True)
    assert sorted(places) == sorted([str(captioned), str(texts)])
    assert len({*processes, str(os.getpid())}) == 2, "one worker, which is another process than this one"


def test_a_caption_without_an_embedding_is_refused_by_the_samples_key(
    captioned: Path, encoder: Path, texts: Path, tmp_path: Path
) -> None:
    """Of grown latents, and of texts from which a caption was rejected."""
    latents = save_latents(tmp_path / "latents", [*CLIPS, *NEW])
    remedy = rf"run launch/encode_text.py --latents {latents} --output {texts} again"
    with pytest.raises(
        ValueError, match=rf"no embedding of the caption 'a caption that is new' of new-00-0000-f000000; {remedy}"
    ):
        LatentLoader(reading(latents, texts))
    grown = Path(shutil.copytree(texts, tmp_path / "texts"))
    encode_here(config_of(encoder, latents, grown, "stored.dtype=fp32"))
    assert len(batches(reading(latents, grown), 1)) == 1
    fewer = save_latents(tmp_path / "fewer", CLIPS[:10])  # another index, but no caption that is new
    assert len(batches(reading(fewer, texts), 1)) == 1


def test_a_damaged_embedding_ends_the_reading_with_its_place(captioned: Path, texts: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(texts, tmp_path / "texts"))
    for shard in (damaged / "shards").iterdir():
        data = bytearray(shard.read_bytes())
        data[1500::3000] = bytes(len(data[1500::3000]))
        shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"the embedding of a caption of .* has another checksum than in the index"):
        batches(reading(captioned, damaged), 5)


@pytest.mark.parametrize("place", ["latents", "nothing"])
def test_a_place_without_texts_is_refused(captioned: Path, tmp_path: Path, place: str) -> None:
    texts = captioned if place == "latents" else tmp_path
    message = "is a dataset of latents; give one of texts" if place == "latents" else "no dataset.json there"
    with pytest.raises(ValueError, match=rf"data.text=.*{message}"):
        LatentLoader(reading(captioned, texts))


# ---- what a training takes of it ------------------------------------------------------------------------------------


def open_data(captioned: Path, texts: Path, *words: str) -> StoredLatents:
    named = [f"data.shards={captioned}", f"data.text={texts}", "dit.condition=text", "data.workers=0"]
    return StoredLatents(tiny_config("unused", *named, *words), LONE)


def test_a_training_knows_the_encoder_the_empty_caption_and_held_out_texts(captioned: Path, texts: Path) -> None:
    stored = {caption: tokens for _, caption, tokens in stored_texts(texts)}
    data = open_data(captioned, texts, "validation.every=1")
    digest = json.loads((texts / "plan.json").read_text())["config"]["encoder.digest"]
    space = data.space
    assert (space.text_encoder, space.text_width, space.text_max_tokens) == (digest, WIDTH, LIMIT)
    assert space.text_empty_tokens == 2
    empty = data.empty_caption
    assert isinstance(empty, Tensor)
    assert torch.equal(empty, stored[""])
    (batch,) = data.held_out
    for place, number in enumerate(range(3)):
        tokens = stored[f"caption of {number}"]
        assert torch.equal(batch.text[place, : len(tokens)], tokens)  # type: ignore[attr-defined]
    assert f"{texts}: 14 captions of at most {LIMIT} tokens of width {WIDTH}; cut to that: 1" in data.describe()[0]


def test_a_held_out_clip_is_measured_with_its_first_caption(captioned: Path, texts: Path, tmp_path: Path) -> None:
    """Training draws one of them anew in each epoch; a measurement must be the same every time."""
    clip = MadeUpClip("held-99-0000", 1, "a cat", captions=("two cats",), split="val")
    data = open_data(save_latents(tmp_path / "latents", [*CLIPS, clip]), texts, "validation.every=1")
    stored = {caption: tokens for _, caption, tokens in stored_texts(texts)}
    (batch,) = data.held_out
    (place,) = [place for place, key in enumerate(batch.keys) if key.startswith(clip.key)]
    assert batch.text is not None
    assert batch.text_mask is not None
    assert torch.equal(batch.text[place][batch.text_mask[place]], stored["a cat"])
    assert not torch.equal(stored["a cat"], stored["two cats"])


def test_texts_of_another_encoder_are_refused_when_a_run_goes_on(captioned: Path, texts: Path, tmp_path: Path) -> None:
    before = TrainingLatents(reading(captioned, texts), classed=False).identity
    assert TrainingLatents(reading(captioned, texts), classed=False).continue_from(before, Position()) == ""
    other = tmp_path / "other"
    encode_here(config_of(save_encoder(tmp_path / "encoder", seed=1), captioned, other))
    with pytest.raises(ValueError, match=r"texts of the checkpoint's run are of the encoder .* with at most 16 tokens"):
        TrainingLatents(reading(captioned, other), classed=False).continue_from(before, Position())


def test_a_clip_without_captions_has_the_empty_one(encoder: Path, tmp_path: Path) -> None:
    latents = save_latents(tmp_path / "latents", [replace(clip, caption="", captions=()) for clip in CLIPS])
    encode_here(config_of(encoder, latents, tmp_path / "texts"))
    (batch,) = batches(reading(latents, tmp_path / "texts"), 1)
    assert batch.captions == [""] * 4
    assert batch.text is not None
    assert batch.text.shape == (4, 2, WIDTH)


def test_captions_that_are_no_list_are_refused_by_the_samples_key(encoder: Path, tmp_path: Path) -> None:
    wrong = MadeUpClip("wrong-00-0000", 1, "a cat", captions=(3,))  # type: ignore[arg-type]
    latents = save_latents(tmp_path / "latents", [*CLIPS, wrong])
    with pytest.raises(
        ValueError, match=r"sample wrong-00-0000-f000000 has a column captions that is no list of texts"
    ):
        encode_here(config_of(encoder, latents, tmp_path / "texts"))

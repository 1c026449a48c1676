"""Latents with captions, and what encodes these captions in the process of a test, without Ray."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import webdataset
from torch import Tensor

from data_pipeline.build.driver import UnitsRun
from data_pipeline.store.open import open_store
from tests.data_pipeline.latents_dataset import MadeUpClip, write_latents
from trainer.config.loader import load_config
from trainer.config.text_encoding import TextEncodingConfig
from trainer.texts.encoding import TextsResult, finish_text_encoding, plan_text_encoding
from trainer.texts.worker import TextWorker

LONG = "the cat runs, " * 6
CAPTIONS = ("a cat", "two men", "the dog runs", LONG.strip(), "a dog, a cat", "")
CLIPS = [
    *(MadeUpClip(f"one-{n:02d}-0000", 2, CAPTIONS[n % 6], split="train") for n in range(8)),
    *(MadeUpClip(f"many-{n:02d}-0000", 1, "a cat", captions=("two cats", f"cat {n}"), split="train") for n in range(4)),
    *(MadeUpClip(f"held-{n:02d}-0000", 1, f"caption of {n}", split="val") for n in range(3)),
]
NEW = [MadeUpClip("new-00-0000", 1, "a caption that is new"), MadeUpClip("new-01-0000", 1, "a cat")]


def distinct(clips: list[MadeUpClip]) -> list[str]:
    """The captions that there are, each once, and the empty one; sorted."""
    return sorted({"", *(clip.caption for clip in clips), *(text for clip in clips for text in clip.captions)})


def save_latents(folder: Path, clips: list[MadeUpClip] = CLIPS) -> Path:
    """A dataset of latents in two shards."""
    write_latents(folder, [clips[: len(clips) // 2], clips[len(clips) // 2 :]])
    return folder


def config_of(encoder: Path, latents: Path, output: Path, *words: str) -> TextEncodingConfig:
    """Settings that a user would give as words; units of four captions."""
    named = [f"encoder={encoder}", f"latents={latents}", f"output={output}", "unit_captions=4"]
    return load_config(TextEncodingConfig, [], [*named, *words])


def encode_here(config: TextEncodingConfig, most_units: int = 1000) -> TextsResult:
    """What `encode_texts` does, without Ray. It stops after `most_units` units, as if it had been killed there."""
    store = open_store(config.output)
    job, missing = plan_text_encoding(config, store)
    worker = TextWorker(job)
    for unit in missing[:most_units]:
        worker.run(unit)
    failed = {} if len(missing) <= most_units else {missing[most_units]: "killed"}
    return finish_text_encoding(job, UnitsRun(done=len(missing), failed=failed), store)


def stored_texts(folder: Path) -> list[tuple[str, str, Tensor]]:
    """(key, caption, embeddings as they are stored) of every sample, as webdataset and safetensors read them."""
    urls = [str(file) for file in sorted((folder / "shards").glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    return [
        (sample["__key__"], sample["txt"].decode(), safetensors.torch.load(sample["safetensors"])["tokens"])
        for sample in samples
    ]

"""Settings of encoding the captions of a dataset of latents: by which encoder, to where, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.store.open import plain_place
from trainer.config.encoding import ComputeConfig, ModelRunConfig


@dataclass(kw_only=True)
class TextConfig:
    """What is made of a caption."""

    # tokens that a longer caption is cut to, special tokens included; 0 takes as many as the encoder takes [>= 0]
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise ValueError(f"text.max_tokens={self.max_tokens} must not be negative; 0 takes the encoder's limit")


@dataclass(kw_only=True)
class StoredTextConfig:
    """How exactly token embeddings are stored."""

    dtype: LatentDtype = LatentDtype.fp16  # fp32, fp16 or bf16


@dataclass(kw_only=True)
class TextComputeConfig(ComputeConfig):
    """How the encoder computes. All of it can change the last bits, so an output keeps it for ever."""

    batch: int = 32  # captions that go through the encoder together, which are all as long in tokens [>= 1]


@dataclass(kw_only=True)
class TextEncodingConfig:
    """One dataset of texts: by which encoder, from which latents, to where, how."""

    encoder: str = "???"  # directory of a Hugging Face encoder and its tokenizer; every worker reads it from there
    latents: str = "???"  # dataset of latents made by launch/encode_latents.py: a folder or s3://bucket/prefix
    output: str = "???"  # a folder or s3://bucket/prefix
    unit_captions: int = 1024  # captions of one work unit [>= 1]
    shard_bytes: int = 256_000_000  # a shard of texts is closed before it grows beyond this [>= 1000000]
    text: TextConfig = field(default_factory=TextConfig)
    stored: StoredTextConfig = field(default_factory=StoredTextConfig)
    encode: TextComputeConfig = field(default_factory=TextComputeConfig)
    run: ModelRunConfig = field(default_factory=ModelRunConfig)

    def __post_init__(self) -> None:
        for key in ("encoder", "latents", "output"):
            if not getattr(self, key):
                raise ValueError(f"{key}= is empty; name a folder or s3://bucket/prefix")
            setattr(self, key, plain_place(getattr(self, key), key))
        if "://" in self.encoder:
            raise ValueError(f"encoder={self.encoder} must be a folder of this machine; copy the encoder to each node")
        if self.unit_captions < 1:
            raise ValueError(f"unit_captions={self.unit_captions} must be at least 1")
        if self.shard_bytes < 1_000_000:
            raise ValueError(f"shard_bytes={self.shard_bytes} must be at least 1000000")

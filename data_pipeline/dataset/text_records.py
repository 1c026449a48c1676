"""What plan, commit records and dataset.json say of texts: the encoder, the stored type, tokens, cut captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.fields import Fields
from data_pipeline.dataset.kind import KIND_KEY, TEXTS


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What a plan of texts records: all that decides their bytes besides captions, program and device."""

    encoder: str  # SHA-256 of the encoder: its configuration, weights and tokenizer
    model: str  # what the encoder's configuration calls its model, such as `bert`
    width: int  # of a token's embedding
    max_tokens: int  # longer captions are cut to so many tokens
    empty_tokens: int  # tokens of the empty caption
    dtype: LatentDtype
    encode: Mapping[str, Any] = field(default_factory=dict)  # batch, threads, precision
    unit_captions: int = 1024  # captions of one work unit
    shard_bytes: int = 256_000_000  # a shard is closed before it grows beyond this

    def to_settings(self) -> dict[str, Any]:
        """The `config` of plan.json: dotted key -> value."""
        settings: dict[str, Any] = {
            KIND_KEY: TEXTS.name,
            "encoder.digest": self.encoder,
            "encoder.model": self.model,
            "encoder.width": self.width,
            "encoder.empty_tokens": self.empty_tokens,
            "text.max_tokens": self.max_tokens,
            "stored.dtype": self.dtype.value,
            "unit_captions": self.unit_captions,
            "shard_bytes": self.shard_bytes,
        }
        return dict(sorted((settings | {f"encode.{key}": value for key, value in self.encode.items()}).items()))

    @staticmethod
    def of(settings: Mapping[str, Any]) -> TextSettings:
        """What a plan's settings say."""
        encode = {key.removeprefix("encode."): settings[key] for key in settings if key.startswith("encode.")}
        return TextSettings(
            encoder=settings["encoder.digest"],
            model=settings["encoder.model"],
            width=settings["encoder.width"],
            max_tokens=settings["text.max_tokens"],
            empty_tokens=settings["encoder.empty_tokens"],
            dtype=LatentDtype(settings["stored.dtype"]),
            encode=encode,
            unit_captions=settings["unit_captions"],
            shard_bytes=settings["shard_bytes"],
        )


@dataclass(frozen=True, kw_only=True)
class UnitTexts:
    """The field `texts` of a commit record: what only a unit of texts has."""

    device: str  # kind of device that encoded the unit; "" where nothing was encoded
    tokens: int  # that are stored, of all captions together
    truncated: int  # captions that were cut to the largest number of tokens

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {"device": self.device, "tokens": self.tokens, "truncated": self.truncated}

    @staticmethod
    def from_json(fields: Fields) -> UnitTexts:
        """Raises: FieldError."""
        return UnitTexts(
            device=fields.text("device"), tokens=fields.integer("tokens"), truncated=fields.integer("truncated")
        )


@dataclass
class TextTotals:
    """The fields `texts` of any number of commit records, added."""

    tokens: int = 0
    truncated: int = 0
    devices: Counter[str] = field(default_factory=Counter)  # kind of device -> units

    def add(self, unit: UnitTexts) -> None:
        """Add one unit."""
        self.tokens += unit.tokens
        self.truncated += unit.truncated
        if unit.device:
            self.devices[unit.device] += 1


@dataclass(frozen=True, kw_only=True)
class TextsDescription:
    """The field `texts` of dataset.json: what readers of texts need to know."""

    encoder: str  # SHA-256 of the encoder: its configuration, weights and tokenizer
    model: str  # what the encoder's configuration calls its model
    width: int
    max_tokens: int
    empty_tokens: int  # tokens of the empty caption
    dtype: LatentDtype
    tokens: int  # of all captions together
    truncated: int  # captions that were cut to `max_tokens`
    latents: tuple[str, ...]  # SHA-256 of the index of each dataset of latents whose captions were planned
    devices: dict[str, int]  # kind of device -> units

    @staticmethod
    def of(settings: TextSettings, totals: TextTotals, latents: Iterable[str]) -> TextsDescription:
        """The description of a dataset with these settings and totals.

        Args:
            latents: SHA-256 of the index of each dataset of latents whose captions were planned.
        """
        return TextsDescription(
            encoder=settings.encoder,
            model=settings.model,
            width=settings.width,
            max_tokens=settings.max_tokens,
            empty_tokens=settings.empty_tokens,
            dtype=settings.dtype,
            tokens=totals.tokens,
            truncated=totals.truncated,
            latents=tuple(latents),
            devices=dict(sorted(totals.devices.items())),
        )

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {
            "encoder": self.encoder,
            "model": self.model,
            "width": self.width,
            "max_tokens": self.max_tokens,
            "empty_tokens": self.empty_tokens,
            "dtype": self.dtype.value,
            "tokens": self.tokens,
            "truncated": self.truncated,
            "latents": list(self.latents),
            "devices": self.devices,
        }

    @staticmethod
    def from_json(fields: Fields) -> TextsDescription:
        """Raises: FieldError."""
        dtype = fields.text("dtype")
        if dtype not in tuple(LatentDtype):
            raise fields.wrong("dtype", " or ".join(LatentDtype), dtype)
        return TextsDescription(
            encoder=fields.text("encoder"),
            model=fields.text("model"),
            width=fields.integer("width"),
            max_tokens=fields.integer("max_tokens"),
            empty_tokens=fields.integer("empty_tokens"),
            dtype=LatentDtype(dtype),
            tokens=fields.integer("tokens"),
            truncated=fields.integer("truncated"),
            latents=tuple(fields.texts("latents")),
            devices=fields.counts("devices"),
        )

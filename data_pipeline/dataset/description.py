"""`dataset.json`, the description of a finished dataset. As long as it is missing, the dataset is not complete."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from data_pipeline.dataset.fields import Fields, Number, WrongFormat, read_object
from data_pipeline.dataset.kind import CLIPS, LATENTS, TEXTS, Kind
from data_pipeline.dataset.latent_records import LatentsDescription
from data_pipeline.dataset.ledger import ClipCounts, Ledger, RowCounts
from data_pipeline.dataset.records import IndexEntry, ShardEntry
from data_pipeline.dataset.text_records import TextsDescription
from data_pipeline.store.base import Store

DATASET_KEY = "dataset.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """The content of dataset.json."""

    stored_fps: Number  # frames a second of every clip, as it is stored; 0 of texts
    storage: dict[str, Any]  # settings that readers may need: short_side in pixels, codec, gop, ...; empty of texts
    encoder: str  # version of everything that decides the bytes of a clip
    plan: str  # digest of plan.json
    records: str  # SHA-256 over all commit records in the order of their units
    shards: tuple[ShardEntry, ...]
    splits: dict[str, int]  # split -> samples
    samples: int
    rows: RowCounts
    clips: ClipCounts
    index: IndexEntry
    latents: LatentsDescription | None = None  # of a dataset of latents
    texts: TextsDescription | None = None  # of a dataset of texts

    @property
    def kind(self) -> Kind:
        """What the dataset consists of."""
        if self.texts is not None:
            return TEXTS
        return CLIPS if self.latents is None else LATENTS

    @property
    def fps(self) -> Fraction:
        """Frames a second of every clip."""
        return Fraction(self.stored_fps).limit_denominator(1001)

    @property
    def short_side(self) -> int:
        """Pixels of every clip's short side, or of the square that every latent sample was encoded from."""
        return int(self.storage["short_side"])

    @property
    def digest(self) -> str:
        """SHA-256 of the index, which changes whenever any clip or its place does."""
        return self.index.sha256

    @property
    def ledger(self) -> Ledger:
        """The account of the dataset's rows."""
        return Ledger(
            input=self.rows.input,
            committed=self.rows.committed,
            rejected=Counter(self.rows.rejected),
            quarantined=Counter(self.rows.quarantined),
            clips=self.clips.committed,
            clips_rejected=Counter(self.clips.rejected),
            shards=len(self.shards),
            bytes=sum(shard.bytes for shard in self.shards),
            splits=Counter(self.splits),
        )

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        description: dict[str, Any] = {
            "format": FORMAT,
            "fps": self.stored_fps,
            "storage": self.storage,
            "encoder": self.encoder,
            "plan": self.plan,
            "records": self.records,
            "shards": [shard.to_json() for shard in self.shards],
            "splits": self.splits,
            "samples": self.samples,
            "rows": self.rows.to_json(),
            "clips": self.clips.to_json(),
            "index": self.index.to_json(),
        }
        if self.latents is not None:
            description["latents"] = self.latents.to_json()
        if self.texts is not None:
            description["texts"] = self.texts.to_json()
        return description

    @staticmethod
    def from_json(fields: Fields) -> DatasetFile:
        """Raises: WrongFormat; FieldError for a missing, unknown or wrongly typed field."""
        fields.require_format(FORMAT)
        storage = fields.mapping("storage")
        if "texts" not in fields:
            Fields(storage, ("storage",)).integer("short_side")
        return DatasetFile(
            stored_fps=_frame_rate(fields),
            storage=storage,
            encoder=fields.text("encoder"),
            plan=fields.text("plan"),
            records=fields.text("records"),
            shards=fields.records("shards", ShardEntry.from_json),
            splits=fields.counts("splits"),
            samples=fields.integer("samples"),
            rows=fields.record("rows", RowCounts.from_json),
            clips=fields.record("clips", ClipCounts.from_json),
            index=fields.record("index", IndexEntry.from_json),
            latents=fields.record("latents", LatentsDescription.from_json) if "latents" in fields else None,
            texts=fields.record("texts", TextsDescription.from_json) if "texts" in fields else None,
        )

    def to_bytes(self) -> bytes:
        """The bytes of the stored file. The same description gives the same bytes."""
        return (json.dumps(self.to_json(), sort_keys=True, indent=1) + "\n").encode()

    @staticmethod
    def load(store: Store, kind: Kind = CLIPS, *, named: str = "data.shards=") -> DatasetFile:
        """Read dataset.json for a reader of the dataset.

        Args:
            kind: what the reader reads.
            named: the setting or option that names the store, as messages show it before the place.
        Raises:
            ValueError: there is none, it may not be read, this version cannot read it, or it is of another kind.
            OSError: the storage fails.
        """
        try:
            description = read_dataset(store)
        except PermissionError as error:
            raise ValueError(f"{named}{store.uri()} may not be read: {error}") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(
                f"{named}{store.uri()}: no dataset.json there; give the folder that {kind.made_by} wrote "
                "to, and if that run was interrupted run the same command again to finish it"
            ) from error
        if description.kind is not kind:
            raise ValueError(
                f"{named}{store.uri()} is a dataset of {description.kind.name}; give one of {kind.name}, the "
                f"folder that {kind.made_by} wrote to"
            )
        return description


MOST_FPS = 10**4


def _frame_rate(fields: Fields) -> Number:
    """Frames a second; 0 of texts. Raises: FieldError for what no clips can have."""
    value = fields.number("fps")
    if not 0 <= value <= MOST_FPS or ("texts" not in fields and value == 0):
        raise fields.wrong("fps", f"a number above 0 and up to {MOST_FPS}", value)
    return value


def read_dataset(store: Store) -> DatasetFile:
    """The content of dataset.json.

    Raises:
        FileNotFoundError: the dataset is not complete.
        ValueError: the file is damaged, or of a format that this version does not read.
    """
    raw = store.read(DATASET_KEY)
    try:
        return read_object(raw, DatasetFile.from_json)
    except WrongFormat as error:
        raise ValueError(f"{store.uri(DATASET_KEY)}: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"{store.uri(DATASET_KEY)} is damaged: {error}; delete it and run the same command again that made the "
            "dataset"
        ) from error


def withdraw(store: Store) -> None:
    """Remove `dataset.json` before units change. The dataset is not complete until `finalize` has written it again."""
    store.delete(DATASET_KEY)

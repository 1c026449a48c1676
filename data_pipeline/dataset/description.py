"""`dataset.json`: what a finished dataset says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from data_pipeline.store.base import Store

DATASET_KEY = "dataset.json"
FORMAT = 1


@dataclass(frozen=True)
class ShardEntry:
    """One shard of dataset.json."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DatasetFile:
    """dataset.json, as far as reading needs it."""

    location: str
    digest: str
    fps: Fraction
    short_side: int
    shards: tuple[ShardEntry, ...]
    index: ShardEntry

    @classmethod
    def load(cls, store: Store) -> DatasetFile:
        """Read dataset.json.

        Raises:
            ValueError: there is none, it may not be read, or it is not one this version reads.
            OSError: the storage fails.
        """
        place = store.uri(DATASET_KEY)
        try:
            raw = store.read(DATASET_KEY)
        except PermissionError as error:
            raise ValueError(f"data.shards={store.uri()} may not be read: {error}") from error
        except FileNotFoundError as error:
            raise ValueError(
                f"data.shards={store.uri()}: no dataset.json there; give the folder that launch/build_shards.py wrote "
                "to, and if that run was interrupted run the same command again to finish it"
            ) from error
        try:
            content: dict[str, Any] = json.loads(raw)
            if content["format"] != FORMAT:
                raise ValueError(
                    f"{place}: format {content['format']}, and this version reads {FORMAT}; rebuild the shards, or "
                    "install the version that made them"
                )
            entries = tuple(ShardEntry(s["name"], int(s["bytes"]), s["sha256"]) for s in content["shards"])
            index = content["index"]
            return cls(
                location=store.uri(),
                digest=index["sha256"],
                fps=Fraction(content["fps"]).limit_denominator(1001),
                short_side=int(content["storage"]["short_side"]),
                shards=entries,
                index=ShardEntry(index["name"], int(index["bytes"]), index["sha256"]),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{place} is damaged ({type(error).__name__}: {error}); rebuild the shards") from error


def read_dataset(store: Store) -> dict[str, Any]:
    """`dataset.json`. Raises: FileNotFoundError before the dataset is complete."""
    return dict(json.loads(store.read(DATASET_KEY)))


def withdraw(store: Store) -> None:
    """Take `dataset.json` away before units change: until `finalize` has run again, the dataset is in work."""
    store.delete(DATASET_KEY)

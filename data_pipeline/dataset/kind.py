"""What a dataset consists of: clips, latents or texts. All have plan, units, index, ledger, description of one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data_pipeline.dataset.index import (
    INDEX_SCHEMA,
    LATENT_INDEX_SCHEMA,
    TEXT_INDEX_SCHEMA,
    IndexRow,
    LatentRow,
    SampleRow,
    TextRow,
)

KIND_KEY = "kind"
"""Key of a plan's settings that names the kind. The plan of a dataset of clips does not have it."""


@dataclass(frozen=True)
class Kind:
    """One kind of dataset."""

    name: str  # value of KIND_KEY, and what messages call the samples
    payload: str  # suffix of the member that a sample is about; the members are `.json`, the payload and `.txt`
    schema: pa.Schema  # columns of the index
    row: type[SampleRow]  # one row of the index
    rows: str  # what messages call the rows of the plan
    refused: str  # what messages call parts of a row that gave no sample
    made_by: str  # the script that makes such a dataset


CLIPS = Kind("clips", ".mp4", INDEX_SCHEMA, IndexRow, "rows", "stretches that gave no clip", "launch/build_shards.py")
LATENTS = Kind(
    "latents",
    ".safetensors",
    LATENT_INDEX_SCHEMA,
    LatentRow,
    "clips",
    "windows that were not stored",
    "launch/encode_latents.py",
)
TEXTS = Kind(
    "texts",
    ".safetensors",
    TEXT_INDEX_SCHEMA,
    TextRow,
    "captions",
    "parts of captions that were not stored",
    "launch/encode_text.py",
)


def kind_of(settings: Mapping[str, Any]) -> Kind:
    """The kind of the dataset that has a plan with these settings.

    Raises: ValueError for a kind that this version does not know.
    """
    name = settings.get(KIND_KEY, CLIPS.name)
    for kind in (CLIPS, LATENTS, TEXTS):
        if kind.name == name:
            return kind
    raise ValueError(f"the plan is of a dataset of {name!r}, which this version does not know")

"""Whether a store has the shards that dataset.json lists, from a listing with sizes. No shard is read."""

from __future__ import annotations

import os.path
from collections.abc import Sequence

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.store.base import Store
from data_pipeline.store.counted import counted

SHOWN = 3  # shards that a message names


def check_present(store: Store, dataset: DatasetFile) -> None:
    """Compare the names and sizes of all shards with the store's. Ten thousand shards are ten requests to S3.

    Raises:
        ValueError: shards are missing, or have another size; the first few are named.
        StoreError: the store does not answer.
    """
    names = [shard.name for shard in dataset.shards]
    faults = list(shard_faults(store, dataset).values())
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ValueError(
            f"data.shards={store.uri()}: {len(faults)} of {counted(len(names), 'shard')} are not as dataset.json "
            f"lists them: {', '.join(faults[:SHOWN])}{more}; copy them there again, or build the dataset anew"
        )


def shard_faults(store: Store, dataset: DatasetFile) -> dict[str, str]:
    """Shard -> what is wrong with its size, of those that are missing or have another size than in dataset.json."""
    found = dict(store.sizes(_folder([shard.name for shard in dataset.shards])))
    faults = {}
    for shard in dataset.shards:
        size = found.get(shard.name)
        if size is None:
            faults[shard.name] = f"{shard.name} is missing"
        elif size != shard.bytes:
            faults[shard.name] = f"{shard.name} has {size} bytes and not {shard.bytes}"
    return faults


def _folder(names: Sequence[str]) -> str:
    """The folder that holds all of these keys, as a prefix; empty where they share none."""
    folder = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ""
    return f"{folder}/" if folder else ""

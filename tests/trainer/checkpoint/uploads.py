"""Helpers of the tests whose checkpoints are uploaded: what the store holds, and the end of a running upload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_pipeline.store.base import Store
from data_pipeline.store.open import open_store
from trainer.checkpoint.checkpoints import Checkpoints

Open = Callable[..., Checkpoints]


def store_of(checkpoints: Checkpoints) -> Any:
    """The store itself, to be watched or disturbed."""
    assert checkpoints.remote is not None
    return checkpoints.remote.store


def settle(checkpoints: Checkpoints) -> None:
    """Until the upload that is going on has ended, well or not."""
    assert checkpoints.uploads is not None
    checkpoints.uploads.wait(60)
    assert not checkpoints.uploads.busy()


def objects(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {key: store.read(key) for key in store.keys()}


def watched(store: Store, log: list[tuple[str, str]]) -> None:
    """Note in `log` which keys are written and deleted, in order."""
    for verb in ("write", "write_file", "delete"):
        call = getattr(store, verb)

        def noted(key: str, *rest: Any, verb: str = verb, call: Callable[..., None] = call) -> None:
            call(key, *rest)
            log.append(("delete" if verb == "delete" else "put", key))

        setattr(store, verb, noted)

"""Which of its captions an example has: a pure function of the seed, the sample's key and the epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from data_pipeline.read.order import PURPOSE_CAPTION, below, draw


def caption_of(captions: Sequence[str], seed: int, key: str, epoch: int, attempt: int = 0) -> str:
    """One of the captions, each as likely.

    It does not depend on ranks, workers, batch, row or shard, so a run that goes on has the captions of an undisturbed
    one.

    Args:
        captions: at least one.
        seed: `data.seed`.
        key: of the sample.
        attempt: above 0 when the sample takes the place of an unreadable one.
    """
    if len(captions) == 1:
        return captions[0]
    name = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return captions[below(int(draw(seed, PURPOSE_CAPTION, (name, epoch, attempt), 1)[0]), len(captions))]

"""What networks say of clips, chunk by chunk, each chunk kept in a file so that it is computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.engine.want_of_memory import batch_in_memory
from trainer.evaluation.catalogue import FeatureNetwork
from trainer.evaluation.real_features import load_features, save_features

CHUNK = 16
"""Clips whose features lie in one file, and which go through the networks together."""
_VERSION = "features-1"
"""Increased when a change of this program changes the features of an unchanged clip."""

Read = Callable[[range], tuple[list[int], Tensor]]
"""Numbers of clips -> the places in the range of those that could be read, and pixels [b, 3, T, S, S] in [0, 1]."""


@dataclass(frozen=True)
class Features:
    """The features of some clips.

    Attributes:
        numbers: of the clips that could be read.
        by_network: name of a network -> float32 [len(numbers), n, d].
    """

    numbers: list[int]
    by_network: dict[str, NDArray[np.float32]]


def features(
    networks: Sequence[FeatureNetwork],
    identities: Sequence[str],
    read: Read,
    cache: Path,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Features]:
    """What the networks say of clips, in their order.

    Args:
        networks: those that are asked.
        identities: of each clip, a text that changes where its pixels change.
        read: gives pixels; it is called only for chunks of which a file is missing.
        cache: folder of the files, which is made.
        progress: called with the number of clips done.
    Raises:
        ValueError: a network cannot be used, or a chunk needs more memory than there is.
        OSError: the files cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(identities), CHUNK):
        chunk = range(first, min(first + CHUNK, len(identities)))
        files = {network.name: cache / _name(network, [identities[number] for number in chunk]) for network in networks}
        found = {name: values for name, file in files.items() if (values := _load(file, len(chunk))) is not None}
        kept = list(range(len(chunk)))
        if missing := [network for network in networks if network.name not in found]:
            with _chunk_in_memory():
                kept, video = read(chunk)
            whole = len(kept) == len(chunk)
            found = {name: values[kept] for name, values in found.items()}
            for network in missing if kept else ():
                with _chunk_in_memory():
                    found[network.name] = _asked(network, video, cache)
                if whole:  # so that what cannot be read is met, and named, the next time as well
                    save_features(files[network.name], found[network.name])
        yield Features([chunk[place] for place in kept], found if kept else {})
        if progress is not None:
            progress(chunk.stop)


def _chunk_in_memory() -> AbstractContextManager[None]:
    """A decoder on the processor may be what has no memory, and another device does not help that."""
    return batch_in_memory(f"a chunk of {CHUNK} clips", "name another --device, or a machine with more memory")


def _asked(network: FeatureNetwork, video: Tensor, cache: Path) -> NDArray[np.float32]:
    """What a network says, or its error with what is not lost by it."""
    try:
        return network(video)
    except ValueError as error:
        if not any(cache.iterdir()):
            raise
        raise ValueError(f"{error}; what the networks said of other clips is kept in {cache}") from error


def _name(network: FeatureNetwork, identities: Sequence[str]) -> str:
    told = json.dumps([_VERSION, network.name, network.digest, list(identities)])
    return f"{hashlib.sha256(told.encode()).hexdigest()[:40]}.npz"


def _load(file: Path, clips: int) -> NDArray[np.float32] | None:
    """None where there is no file, or one that is damaged or of other clips: then the features are computed again."""
    values = load_features(file)
    return values if values is not None and len(values) == clips else None

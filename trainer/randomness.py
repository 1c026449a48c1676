"""Random generators. A process's generators are started, saved and put back; a clip's own one needs no saving."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, *key: int) -> None:
    """Start every random generator of this process from a seed, or, with a key, from the seed and the key."""
    if key:
        seed = int(np.random.SeedSequence([seed % 2**32, *key]).generate_state(1, np.uint32)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """State of every random generator of this process."""
    numpy_state: Any = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(np.asarray(numpy_state[1]).astype(np.int64)), *numpy_state[2:]],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Undo `rng_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def drawn_frames(seed: int, step: int, places: Iterable[int], frames: int, count: int) -> list[list[int]]:
    """Some frames of each clip, drawn without repetition and with equal chances, keyed as `clip_generators` are.

    Returns:
        For each place the numbers of `count` frames, ascending.
    """
    drawn = []
    for place in places:
        key = np.random.SeedSequence([seed, step, place, 1])  # the 1 keeps it apart from the key of the noise
        drawn.append(sorted(np.random.default_rng(key).permutation(frames)[:count].tolist()))
    return drawn


@contextmanager
def generators_kept() -> Iterator[None]:
    """Whatever is drawn inside, every random generator of this process goes on afterwards as if nothing had been."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def clip_generators(seed: int, step: int, places: Iterable[int], device: torch.device) -> list[torch.Generator]:
    """Sources of the posterior noise of clips, keyed by seed, step and place in the global batch.

    The key determines the noise. Therefore no state has to be saved, and a clip's noise does not depend on how the
    batch is divided among ranks and micro-batches.
    """
    sources = []
    for place in places:
        key = np.random.SeedSequence([seed, step, place]).generate_state(1, np.uint64)
        sources.append(torch.Generator(device).manual_seed(int(key[0] >> np.uint64(1))))
    return sources

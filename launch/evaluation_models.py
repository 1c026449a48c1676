"""The models that `launch/evaluate.py` measures, each opened once before the first window is measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.outside.naming import naming
from launch.evaluation_sources import open_sources
from launch.inputs import speaking_of

if TYPE_CHECKING:
    import torch

    from model.vidtwin import VidTwin
    from trainer.evaluation.session import Candidate
    from trainer.evaluation.sources import WindowSource


def open_candidates(arguments: argparse.Namespace, device: torch.device) -> list[Candidate]:
    """Everything that is measured: each model with its windows.

    Raises:
        ValueError, OSError: a model, checkpoint or source cannot be used, or a model has other windows than the
            baseline.
    """
    from trainer.evaluation.run import WrongFrames, window_frames
    from trainer.evaluation.session import Candidate, digest_of

    named = list(_named(arguments, device))
    loads = dict(named)

    @lru_cache(maxsize=1)  # a single model is loaded once and stays
    def load(name: str) -> VidTwin:
        return loads[name]()

    @cache
    def sources(frames: int, size: int) -> Sequence[WindowSource]:
        with speaking_of({"data.shards=": "--shards ", "data.split=": "--split ", "data.frames=": "--frames "}):
            return open_sources(arguments, frames, size)

    candidates = []
    for name in loads:
        model = load(name)
        try:
            frames = window_frames(model, arguments.frames)
        except WrongFrames as error:
            raise ValueError(f"{name}: {error}") from error
        candidates.append(
            Candidate(
                name=name,
                weights="untrained" if arguments.untrained else "trained",
                load=partial(load, name),
                digest=digest_of(model),
                config=model.config,
                provenance=model.provenance,
                sources=sources(frames, model.config.image_size),
            )
        )
    _check_baseline(arguments, candidates)
    return candidates


def _named(arguments: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, Callable[[], VidTwin]]]:
    """The name of each model, and what loads it; the baseline first."""
    from trainer.checkpoint.files import is_complete
    from trainer.checkpoint.lookup import all_checkpoints
    from trainer.evaluation.run import load_model

    places = list(arguments.model or ())
    if arguments.baseline is not None:
        places.insert(0, arguments.baseline)
    checkpoints = [place for place in places if "://" not in place and is_complete(Path(place))]
    if arguments.untrained and checkpoints:
        raise ValueError(f"--untrained means nothing with the checkpoint {checkpoints[0]}; leave it away")
    if arguments.weights is not None and not checkpoints and not arguments.checkpoints:
        raise ValueError("--weights chooses among those of a checkpoint, and only model directories are named")
    with naming("--checkpoints "):
        runs = [str(checkpoint) for run in arguments.checkpoints or () for checkpoint in all_checkpoints(run)]
    named = list(dict.fromkeys([*places, *runs]))
    _check_spelling(named)
    for place in named:
        if place in checkpoints or place in runs:
            load = partial(_of_checkpoint, place, arguments.weights, device)
        else:
            load = partial(load_model, place, device, arguments.untrained)
        option = "--checkpoints " if place in runs else "--baseline " if place == arguments.baseline else "--model "
        yield place, partial(_named_by, option, load)


def _named_by(option: str, load: Callable[[], VidTwin]) -> VidTwin:
    with naming(option):
        return load()


def _check_spelling(places: Sequence[str]) -> None:
    """Refuse one place under several names. Raises: ValueError: it is named as `m` and as `./m`, for instance."""
    first: dict[str, str] = {}
    for place in places:
        own = place.rstrip("/") if "://" in place else str(Path(place).resolve())
        if own in first:
            raise ValueError(f"{first[own]} and {place} are the same model; name it once, or write it in one way")
        first[own] = place


def _of_checkpoint(place: str, weights: str | None, device: torch.device) -> VidTwin:
    from model.provenance import Weights
    from trainer.checkpoint.export import load_vidtwin, opened

    with opened(place, None, Weights(weights) if weights else None) as found:
        # torch chooses other kernels for weights without a gradient, and the values then differ from those of the
        # export in their last digits.
        return load_vidtwin(found).to(device).requires_grad_(True)


def _check_baseline(arguments: argparse.Namespace, candidates: Sequence[Candidate]) -> None:
    if arguments.baseline is None:
        return
    base = next(candidate for candidate in candidates if candidate.name == arguments.baseline)
    if len(candidates) == 1:
        raise ValueError(f"--baseline {base.name} is the only model; name another one to compare with --model")
    for other in candidates:
        if not other.windows_like(base):
            raise ValueError(
                f"--baseline {base.name} has windows of {_shape(base)}, and {other.name} of {_shape(other)}: they have "
                "no window in common; compare models of one size, or give --frames"
            )


def _shape(candidate: Candidate) -> str:
    settings = candidate.sources[0].settings
    return f"{settings['frames']} frames of {settings['size']} pixels"

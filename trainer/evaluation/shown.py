"""The windows that a person should look at: the best, the median and the worst of each model, as moving pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from data_pipeline.store.files import atomic_file
from model.vidtwin import VidTwin
from trainer.evaluation.metrics import reconstruct
from trainer.evaluation.pictures import Frames, VideoWriter, side_by_side
from trainer.evaluation.reconstruction import to_frames
from trainer.evaluation.sources import Part, Totals, Window, WindowSource
from trainer.evaluation.windows import Key, Windows

CHOSEN_BY = "psnr"
RANKS = ("best", "median", "worst")


@dataclass
class Shown:
    """A window on the page.

    Attributes:
        key: source and first frame.
        part: in which the source has the window.
        reasons: such as `best of runs/base/model`.
        values: name of a model -> its metrics of this window.
        mp4: the source and what each model makes of it, side by side; empty until it is written.
    """

    key: Key
    part: str
    reasons: list[str]
    values: dict[str, dict[str, float]]
    mp4: bytes = field(default=b"", repr=False)


def choose(measured: Mapping[str, Windows]) -> list[Shown]:
    """The best, the median and the worst window of each model by PSNR, in the order of their keys.

    Args:
        measured: name of a model -> its windows, all of the same source and shape.
    """
    found: dict[Key, Shown] = {}
    for name, windows in measured.items():
        if not windows:
            continue
        order = np.argsort(-windows.values[CHOSEN_BY], kind="stable")
        for rank, place in zip(RANKS, (order[0], order[(len(order) - 1) // 2], order[-1]), strict=True):
            key = windows.keys[place]
            found.setdefault(key, Shown(key, windows.parts[place], [], {})).reasons.append(f"{rank} of {name}")
    for name, windows in measured.items():
        for place, key in enumerate(windows.keys):
            if key in found:
                found[key].values[name] = {metric: float(values[place]) for metric, values in windows.values.items()}
    return [found[key] for key in sorted(found)]


def write_videos(
    shown: Sequence[Shown],
    source: WindowSource,
    models: Mapping[str, tuple[str, Callable[[], VidTwin]]],
    folder: Path,
) -> None:
    """Give every window its mp4: the source, and right of it what each model makes of the window.

    Args:
        shown: the windows; those that cannot be read any more stay without a video.
        models: name -> digest of the weights, and what loads the model; each is loaded at most once, one after another.
        folder: where the videos are kept for the next run, under names that no search for videos takes for one.
    Raises:
        StoreError: the disk is full.
    """
    parts = {part.name: part for part in source.parts()}
    files = {}
    for item in shown:
        told = [parts[item.part].identity, item.key, [digest for digest, _ in models.values()]]
        files[item.key] = folder / hashlib.sha256(json.dumps(told).encode()).hexdigest()[:40]
    windows = {window_key(window): window for window in _read(shown, source, files)}
    strips: dict[Key, list[Frames]] = {key: [to_frames(window.video)] for key, window in windows.items()}
    for _, load in models.values() if windows else ():
        model = load()
        for key, window in windows.items():
            video = window.video[None].to(model.last_layer.weight.device)
            strips[key].append(to_frames(reconstruct(model, video)[0].cpu()))
    folder.mkdir(parents=True, exist_ok=True)
    for key, window in windows.items():
        with atomic_file(files[key]) as temporary:
            temporary.write_bytes(_mp4(side_by_side(strips[key]), window.fps))
    for item in shown:
        if files[item.key].is_file():
            item.mp4 = files[item.key].read_bytes()


def _mp4(frames: Frames, fps: float) -> bytes:
    with TemporaryDirectory() as folder:
        with VideoWriter(Path(folder, "shown.mp4"), Fraction(fps).limit_denominator(1001)) as writer:
            for frame in frames:
                writer.write(frame)
        return writer.path.read_bytes()


def window_key(window: Window) -> Key:
    """The key of a window among the measured ones."""
    return window.source, window.start


@torch.no_grad()
def _read(shown: Sequence[Shown], source: WindowSource, files: Mapping[Key, Path]) -> Iterator[Window]:
    """The windows that have no video yet, read from the source."""
    wanted: dict[str, set[Key]] = {}
    for item in shown:
        if not files[item.key].is_file():
            wanted.setdefault(item.part, set()).add(item.key)
    with closing(source):
        for part in source.parts() if wanted else ():
            keys = wanted.get(part.name, set())
            for window in _readable(source, part) if keys else ():
                if window_key(window) in keys:
                    keys.remove(window_key(window))
                    yield window
                if not keys:
                    break


def _readable(source: WindowSource, part: Part) -> Iterator[Window]:
    """The windows of a part, up to where a source refuses to go on because too much of it cannot be read."""
    try:
        yield from source.read(part, Totals())
    except ValueError:  # the report of the source has the reason
        return

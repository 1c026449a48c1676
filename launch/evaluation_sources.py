"""The windows that the options of `launch/evaluate.py` name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.outside.naming import naming
from launch.evaluation_options import OUTPUT_FILES

if TYPE_CHECKING:
    from trainer.evaluation.frechet_protocol import FrechetPreset
    from trainer.evaluation.sources import WindowSource


def open_sources(arguments: argparse.Namespace, frames: int, size: int) -> list[WindowSource]:
    """The windows that are measured, of this shape: one source for each split, or all videos."""
    from trainer.evaluation.found_videos import find_videos
    from trainer.evaluation.frechet_protocol import PRESETS
    from trainer.evaluation.paper import PROTOCOLS, find_list
    from trainer.evaluation.session import PIECES_FOLDER, REAL_FOLDER, SHOWN_FOLDER
    from trainer.evaluation.shard_source import ShardSource
    from trainer.evaluation.sources import VideoFiles

    most = arguments.max_windows
    preset = PRESETS[arguments.fvd_preset] if arguments.fvd_preset else None
    draw = None if preset is None else preset.draw
    if arguments.shards is None:
        listing = arguments.list
        if listing is None and arguments.protocol is not None:
            listing = find_list(PROTOCOLS[arguments.protocol], Path(arguments.source))
        names = (*OUTPUT_FILES, PIECES_FOLDER, REAL_FOLDER, SHOWN_FOLDER)
        own = [] if arguments.output is None else [arguments.output / name for name in names]
        videos = find_videos(arguments.source, listing, own)
        _check(preset, arguments, frames, len(dict(videos)), "video")
        interval = arguments.interval if preset is None else preset.stride
        return [VideoFiles(videos, frames, size, interval, most, draw)]
    splits = dict.fromkeys(arguments.split or ["val"])
    sources = [
        ShardSource(arguments.shards, split, frames, size, arguments.resize or 0, most, draw) for split in splits
    ]
    for source in sources:
        _check(preset, arguments, frames, len(source), "stored clip")
    return list(sources)


def _check(preset: FrechetPreset | None, arguments: argparse.Namespace, frames: int, items: int, what: str) -> None:
    if preset is not None:
        with naming("--fvd-preset "):
            preset.check_inputs(frames, items, what, allow_few=arguments.few_clips)

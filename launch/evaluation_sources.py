"""The windows that the options of `launch/evaluate.py` name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from launch.evaluation_options import OUTPUT_FILES

if TYPE_CHECKING:
    from trainer.evaluation.sources import WindowSource


def open_sources(arguments: argparse.Namespace, frames: int, size: int) -> list[WindowSource]:
    """The windows that are measured, of this shape: one source for each split, or all videos."""
    from trainer.evaluation.found_videos import find_videos
    from trainer.evaluation.paper import PROTOCOLS, find_list
    from trainer.evaluation.session import PIECES_FOLDER, REAL_FOLDER, SHOWN_FOLDER
    from trainer.evaluation.shard_source import ShardSource
    from trainer.evaluation.sources import VideoFiles

    most = arguments.max_windows
    if arguments.shards is None:
        listing = arguments.list
        if listing is None and arguments.protocol is not None:
            listing = find_list(PROTOCOLS[arguments.protocol], Path(arguments.source))
        names = (*OUTPUT_FILES, PIECES_FOLDER, REAL_FOLDER, SHOWN_FOLDER)
        own = [] if arguments.output is None else [arguments.output / name for name in names]
        return [VideoFiles(find_videos(arguments.source, listing, own), frames, size, arguments.interval, most)]
    splits = dict.fromkeys(arguments.split or ["val"])
    return [ShardSource(arguments.shards, split, frames, size, arguments.resize or 0, most) for split in splits]

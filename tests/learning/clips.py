"""Six classes of real clips: each is a shot or a stretch of one, and its middle is held out."""

from __future__ import annotations

import csv
from pathlib import Path

from launch.demo.source import default_clips

RATE = 25
"""Frames a second at which the clips are stored."""
CLIP_FRAMES = 10
"""Windows of 8 frames begin at its frames 0, 1 and 2."""
ROWS = 12
"""Clips of a class that train: six before the held-out clip, and six behind it; they overlap."""
GAP_FRAMES = 1
"""Between the held-out clip and those that train: these frames belong to no clip."""

# name -> video, first frame, frame behind the last one. The cuts of bikes.mp4 are in front of its frames 30, 76, 137,
# 187 and 242: there the picture changes by 59 to 101 levels of 255 (root mean square at 64 x 64), elsewhere by 33.
SHOTS = {
    "bikes-3": ("bikes", 76, 137),
    "bikes-4": ("bikes", 137, 187),
    "bikes-5": ("bikes", 197, 242),  # its first 10 frames show something else
    "rabbit-1": ("bigbuckbunny", 0, 42),  # it comes out of its burrow
    "rabbit-2": ("bigbuckbunny", 54, 132),  # it stands in front of it
    "phone": ("carphone_pristine", 0, 100),  # 4 s at 30 frames a second are 100 frames at 25
}


def label_of(place: int, row: int, shuffled: bool) -> str:
    """The label of clip `row` of the class at `place`; shuffled, each label has as many clips of each class."""
    names = list(SHOTS)
    return names[(place + row) % len(names)] if shuffled else names[place]


def write_manifest(file: Path, *, shuffled: bool) -> None:
    """Write one row for each clip.

    Args:
        shuffled: the labels of the clips that train say nothing of what is seen.
    """
    videos = default_clips()
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["video", "id", "start", "end", "split", "caption", "label"])
        for place, (name, (video, first, behind)) in enumerate(SHOTS.items()):
            begins, held_out = begins_of(first, behind)
            for row, begin in enumerate(begins):
                label = label_of(place, row, shuffled)
                writer.writerow([videos[video], f"{name}-{row:02d}", *_times(begin), "train", name, label])
            writer.writerow([videos[video], f"{name}-held-out", *_times(held_out), "val", name, name])


def begins_of(first: int, behind: int) -> tuple[list[int], int]:
    """The first frames of the clips that train, and of the held-out clip, of the shot [first, behind)."""
    held_out = (first + behind - CLIP_FRAMES) // 2
    stretches = (first, held_out - GAP_FRAMES), (held_out + CLIP_FRAMES + GAP_FRAMES, behind)
    count = ROWS // len(stretches)
    return [
        begin + round(number * (end - CLIP_FRAMES - begin) / (count - 1))
        for begin, end in stretches
        for number in range(count)
    ], held_out


def _times(begin: int) -> tuple[str, str]:
    return f"{begin / RATE:.3f}", f"{(begin + CLIP_FRAMES) / RATE:.3f}"

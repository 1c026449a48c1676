"""Six classes of real clips: each is a shot, or a whole video of one shot, and its end is held out."""

from __future__ import annotations

import csv
from pathlib import Path

from launch.demo.source import default_clips

RATE = 25
"""Frames a second at which the clips are stored."""
ROW_FRAMES = 12
"""Of a clip that trains: windows of 8 frames begin at its frames 0, 2 and 4."""
ROWS = 12
"""Clips of a class that train; they begin at even distances, and overlap."""
HELD_OUT_FRAMES = 12

# name -> video, first frame, frame behind the last one. The cuts of bikes.mp4 are in front of its frames 30, 76, 137,
# 187 and 242: there the picture changes by 59 to 101 levels of 255 (root mean square at 64 x 64), elsewhere by 33.
SHOTS = {
    "bikes-2": ("bikes", 30, 76),
    "bikes-3": ("bikes", 76, 137),
    "bikes-4": ("bikes", 137, 187),
    "bikes-5": ("bikes", 187, 242),
    "rabbit": ("bigbuckbunny", 48, 132),
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
            last = behind - HELD_OUT_FRAMES - ROW_FRAMES - 1  # the frame before the held-out ones belongs to nobody
            for row in range(ROWS):
                begin = first + round(row * (last - first) / (ROWS - 1))
                times = f"{begin / RATE:.3f}", f"{(begin + ROW_FRAMES) / RATE:.3f}"
                label = label_of(place, row, shuffled)
                writer.writerow([videos[video], f"{name}-{row:02d}", *times, "train", name, label])
            times = f"{(behind - HELD_OUT_FRAMES) / RATE:.3f}", f"{behind / RATE:.3f}"
            writer.writerow([videos[video], f"{name}-end", *times, "val", name, name])

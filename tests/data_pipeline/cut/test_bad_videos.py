"""One manifest with every kind of video that people have: each row's fate, and neighbours that notice nothing.

Each kind alone is held against ffmpeg, ffprobe or a closed form in test_video.py, test_damaged_video.py,
test_geometry.py, test_isolate.py and source/test_fetch.py; damage in bulk is test_fuzz.py. Here they go through the
real unit, one after the other, in one worker.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.isolate import IsolatedCutter
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.verify import verify
from data_pipeline.source.config import SourcesConfig
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.cut.test_fuzz import resident_peak
from tests.data_pipeline.cut.test_geometry import interlaced_video, set_sar
from tests.data_pipeline.cut.videos import audio, numbered_video, picture, write_video
from tests.tools.web import QuietHandler, serving

MEMORY = 2**30
FRAMES = 14
CLIP = ClipConfig(short_side=64, min_seconds=0.5, max_seconds=10.0, min_short_side=64, max_source_seconds=60.0)
CRASHING = """
import os, av
open_ = av.open
def opened(file, *a, **k):
    if "crashing" in str(file): os.kill(os.getpid(), 11)
    return open_(file, *a, **k)
av.open = opened
"""


def plain(path: Path, frames: int = FRAMES, **kinds: Any) -> None:
    numbered_video(path, frames, **({"width": 128, "height": 96, "fps": 8} | kinds))


def changed(change: Callable[[bytearray], None], **kinds: Any) -> Callable[[Path], None]:
    """A maker of a good video that is damaged afterwards."""

    def make(path: Path) -> None:
        plain(path, **kinds)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)

    return make


def cut_off(data: bytearray) -> None:
    del data[len(data) * 17 // 20 :]


def flip_bits(data: bytearray) -> None:
    draw = random.Random(1)
    for _ in range(60):
        data[draw.randrange(len(data) // 3, len(data))] ^= 1 << draw.randrange(8)


def pq(stream: Any) -> None:
    stream.codec_context.color_trc = 16  # SMPTE ST 2084


def eight_k(path: Path) -> None:
    tile = picture(0, 480, 270)[:, :, 1]
    frames = []
    for n in range(5):
        planes = np.full((4320 * 3 // 2, 7680), 128, np.uint8)
        planes[:4320] = np.tile(np.roll(tile, 8 * n, axis=1), (16, 16))
        frames.append(av.VideoFrame.from_ndarray(planes, format="yuv420p"))
    write_video(path, frames, fps=8)


def hesitating(path: Path) -> None:
    times = [0, 30, 95, 110, 165, 210, 230, 280, 330, 360, 450, 480, 560, 640]
    plain(path, pts=times, time_base=Fraction(1, 1000))


def endless_file(path: Path) -> None:
    """A minute and a half in which next to nothing is stored: a camera that nobody stopped."""
    times = [n * 7000 for n in range(FRAMES)]
    plain(path, pts=times, time_base=Fraction(1, 1000))


KINDS: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    # name: file, maker, and the fates allowed: committed, or the reason or error
    "truncated": ("t.mkv", changed(cut_off, frames=48), ("committed",)),
    "truncated before its index": ("t.mp4", changed(cut_off), ("undecodable",)),
    "bit-flipped": ("f.mkv", changed(flip_bits, frames=48), ("committed", "damaged", "undecodable")),
    "zero-byte": ("z.mp4", lambda path: path.write_bytes(b""), ("empty",)),
    "text": ("t.mp4", lambda path: path.write_text("This is no video.\n" * 100), ("undecodable",)),
    "audio-only": ("a.mp4", audio, ("undecodable",)),
    "1-frame": ("o.mp4", lambda path: numbered_video(path, 1, width=128, height=96), ("too_short",)),
    "8K": ("k.mp4", eight_k, ("committed",)),
    "rotated": ("r.mp4", lambda path: plain(path, prepare=lambda s: s.set_display_rotation(90)), ("committed",)),
    "interlaced": ("i.mp4", lambda path: interlaced_video(path, True), ("committed",)),
    "VFR": ("v.mkv", hesitating, ("committed",)),
    "odd-sized": ("o.mkv", lambda path: plain(path, width=129, height=97, pix_fmt="yuv444p"), ("committed",)),
    "non-square-pixel": ("n.mp4", lambda path: plain(path, prepare=set_sar(Fraction(16, 11))), ("committed",)),
    "10-bit": ("d.mp4", lambda path: plain(path, pix_fmt="yuv420p10le"), ("committed",)),
    "HDR": ("h.mp4", lambda path: plain(path, pix_fmt="yuv420p10le", prepare=pq), ("hdr",)),
    "endless file": ("e.mkv", endless_file, ("too_long",)),
    "crashing": ("crashing.mp4", plain, ("crash",)),
}


@pytest.fixture
def endless() -> Iterator[str]:
    """A URL whose body never ends."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                self.close_connection = True

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}/live.mp4"


def test_every_kind_has_its_fate_and_its_neighbours_are_unharmed(
    endless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    plain(folder / "good.mp4")
    rows = [("good first", "good.mp4")]
    for number, (kind, (name, make, _)) in enumerate(KINDS.items()):
        file = folder / f"{number:02d}-{name}"
        make(file)
        rows += [(kind, file.name), (f"good after {kind}", "good.mp4")]
    rows += [("endless", endless), ("good last", "good.mp4")]
    with (folder / "m.csv").open("w", newline="") as file_:
        csv.writer(file_).writerows([("id", "video", "caption"), *((*row, "A caption.") for row in rows)])
    (tmp_path / "sitecustomize.py").write_text(CRASHING)  # runs in the decoder's process before anything else
    monkeypatch.syspath_prepend(str(tmp_path))

    sources = SourcesConfig(max_bytes=50_000_000)
    config = ShardsConfig(
        source=str(folder / "m.csv"), output=str(tmp_path / "out"), unit_rows=100, clip=CLIP, sources=sources
    )
    store = LocalStore(config.output)
    planned = make_plan(config, "test", store)
    peaks = []
    with IsolatedCutter(CLIP, timeout_s=60, memory_bytes=MEMORY) as cutter:

        def cut(path: Path, *, start: float | None = None, end: float | None = None) -> Any:
            try:
                return cutter.cut(path, start=start, end=end)
            finally:
                peaks.append(resident_peak(cutter.pid) if cutter.pid else 0)

        Worker(BuildJob(config, planned.plan, planned.base), cut).run(0)
    finalize(Dataset(store, planned.plan))
    assert verify(store).problems == []
    record = json.loads(store.read("units/000000.json"))
    fates = {
        fate["id"]: fate["fate"] if fate["fate"] == "committed" else fate.get("reason") or fate["error"]
        for fate in record["rows"]
    }
    assert list(fates) == [identity for identity, _ in rows]
    expected = {kind: allowed for kind, (_, _, allowed) in KINDS.items()} | {"endless": ("too_large",)}
    wrong = {kind: fates[kind] for kind, allowed in expected.items() if fates[kind] not in allowed}
    assert wrong == {}
    assert {fate for identity, fate in fates.items() if identity.startswith("good")} == {"committed"}
    assert len(good_clips(store)) == 1, "one file, the same bytes wherever it stands"
    assert 0 < max(peaks) < MEMORY


def good_clips(store: LocalStore) -> set[bytes]:
    """The different clips among those of the good neighbours."""
    import pyarrow as pa

    index = pa.ipc.open_file(str(store.local_path("index.arrow"))).read_all().to_pylist()
    shards = json.loads(store.read("dataset.json"))["shards"]
    return {
        store.read(shards[sample["shard"]]["name"], sample["video_offset"], sample["video_size"])
        for sample in index
        if sample["source"].startswith("good")
    }

"""Mutated files: each ends as clips with reasons or as undecodable, in bounded time and memory, and harms no other.

The seed is fixed. `make test` runs a part; the whole is marked slow:

    pytest -m slow tests/data_pipeline/cut/test_fuzz.py
"""

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.isolate import IsolatedCutter
from data_pipeline.cut.result import CutResult
from data_pipeline.cut.video import UndecodableVideo
from tests.data_pipeline.cut.videos import decoded, numbered_video, real_video

CONFIG = ClipConfig(short_side=64, min_short_side=32, min_psnr=0.0, max_aspect=50.0, max_source_seconds=600.0)
MEMORY = 2**30
SECONDS = 30.0


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small files of several containers and codecs, made and real."""
    folder = tmp_path_factory.mktemp("originals")
    size = {"width": 96, "height": 80}
    quick = {"deadline": "realtime", "cpu-used": "8"}
    short = {"g": "12", "bf": "2", "preset": "veryfast"}
    return [
        path.read_bytes()
        for path in (
            numbered_video(folder / "a.mp4", 60, options=short, **size),
            numbered_video(folder / "b.mp4", 60, options=short, container_options={"movflags": "faststart"}, **size),
            numbered_video(folder / "c.mkv", 60, options={"slices": "4", "g": "20"}, **size),
            numbered_video(folder / "d.ts", 60, options=short, **size),
            numbered_video(folder / "e.avi", 60, codec="mpeg4", **size),
            numbered_video(folder / "f.webm", 60, codec="libvpx", options=quick, **size),
            numbered_video(folder / "g.mov", 60, codec="mjpeg", pix_fmt="yuvj420p", **size),
            numbered_video(folder / "h.mpg", 60, codec="mpeg2video", options={"bf": "2"}, **size),
            real_video("carphone_pristine.mp4"),
        )
    ]


def mutated(originals: list[bytes], seed: int) -> tuple[str, bytes]:
    """One damaged file and what was done to it."""
    draw = random.Random(seed)
    which = draw.randrange(len(originals))
    data = bytearray(originals[which])
    kind = draw.choice(["truncate", "flip", "flips", "zero", "noise", "splice", "head", "drop"])
    at = draw.randrange(len(data))
    run = draw.randint(1, max(2, len(data) // 8))
    if kind == "truncate":
        del data[at:]
    elif kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "flips":
        for _ in range(draw.randint(2, 200)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "zero":
        data[at : at + run] = bytes(len(data[at : at + run]))
    elif kind == "noise":
        data[at : at + run] = draw.randbytes(len(data[at : at + run]))
    elif kind == "splice":
        other = originals[draw.randrange(len(originals))]
        data[at:] = other[draw.randrange(len(other)) :]
    elif kind == "head":  # sizes, rates and codec parameters
        for _ in range(draw.randint(1, 12)):
            data[draw.randrange(min(1500, len(data)))] = draw.randrange(256)
    else:
        del data[at : at + run]
    return f"seed {seed}: file {which}, {kind} at {at}", bytes(data)


def check(result: CutResult, what: str) -> None:
    for clip in result.clips:
        images = decoded(clip.data)
        assert len(images) == clip.frames == len(clip.source_pts) >= CONFIG.min_frames, what
        assert all(image.shape == (clip.height, clip.width, 3) for image in images), what
        assert all(a < b for a, b in pairwise(clip.source_pts)), what
        for k, pts in enumerate(clip.source_pts):
            assert -1e-5 <= clip.start + k / CONFIG.fps - pts <= clip.fps_error + 1e-9, what
    numbers = [item.number for item in [*result.clips, *result.rejected] if item.number is not None]
    assert sorted(numbers) == list(range(len(numbers))), what
    assert all(item.start <= item.end for item in [*result.clips, *result.rejected]), what


def resident_peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def fuzz(originals: list[bytes], folder: Path, seeds: range) -> Counter[str]:
    fates: Counter[str] = Counter()
    path = folder / "mutant.bin"
    good = folder / "good.mp4"
    good.write_bytes(originals[0])
    with IsolatedCutter(CONFIG, timeout_s=SECONDS, memory_bytes=MEMORY) as cutter:
        reference = cutter.cut(good)
        assert reference.clips
        for seed in seeds:
            what, data = mutated(originals, seed)
            path.write_bytes(data)
            try:
                result = cutter.cut(path)
            except UndecodableVideo as error:
                if error.cause not in {"undecodable", "crash", "timeout", "memory"}:
                    raise AssertionError(f"{what}: a fault of ours: {error}") from error
                fates[error.cause] += 1
            else:
                check(result, what)
                fates["clips" if result.clips else "rejected"] += 1
            assert cutter.pid is None or resident_peak(cutter.pid) < 1.5 * MEMORY, what
            if seed % 20 == 19:
                assert cutter.cut(good) == reference, f"after {what}"  # neighbours are unharmed
        assert cutter.cut(good) == reference
    return fates


def test_mutated_files(originals: list[bytes], tmp_path: Path) -> None:
    fates = fuzz(originals, tmp_path, range(90))
    assert fates.total() == 90
    assert fates["undecodable"] >= 5
    assert fates["clips"] >= 15


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_many_mutated_files(originals: list[bytes], tmp_path: Path, part: int) -> None:
    begin = 1000 + 150 * part
    assert fuzz(originals, tmp_path, range(begin, begin + 150)).total() == 150

"""Both scripts, as a user runs them, on real videos, a variable frame rate, a rotation and a broken file."""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import ray
import webdataset

from data_pipeline.build.ray_cluster import start_local_cluster
from launch import build_shards, verify_shards
from tests.data_pipeline.cut.videos import (
    decoded,
    ffmpeg_frames,
    ffprobe_times,
    numbers,
    picture,
    real_video,
    write_video,
)
from tests.launch.scripts import run

MILLISECOND = Fraction(1, 1000)
ROOT = Path(__file__).parents[2]
SETTINGS = ["clip.min_short_side=128", "clip.short_side=128", "split.val=0.5", "unit_rows=2"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray whose workers have no S3 credentials."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            environment.setenv(name, "/nowhere")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        start_local_cluster(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rows in a manifest of a folder."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("bikes.mp4", "carphone_pristine.mp4"):
        shutil.copy(real_video(name), folder)
    jitter = [0, 30, 95, 110, 165, 210, 230, 280, 330, 360]  # ms: a camera that hesitates
    times = [420 * (n // 10) + jitter[n % 10] for n in range(80)]
    write_video(folder / "vfr.mkv", (picture(n, 320, 256) for n in range(80)), pts=times, time_base=MILLISECOND)
    rotated = write_video(folder / "rotated.mp4", (picture(n, 320, 256) for n in range(75)))
    data = bytearray(rotated.read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO/IEC 14496-12: nine 32-bit numbers, here a quarter turn
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 256 << 16, 0, 1 << 30)
    rotated.write_bytes(data)
    (folder / "broken.mp4").write_bytes(real_video("bikes.mp4").read_bytes()[:5000])
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "caption", "license"])
        for name in ("bikes.mp4", "carphone_pristine.mp4", "vfr.mkv", "rotated.mp4", "broken.mp4", "absent.mp4"):
            writer.writerow([name, f"a caption, of {name}", "BSD"])
        writer.writerow(["bikes2.mp4", "", ""])
    return folder


@pytest.fixture(scope="module")
def output(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("datasets") / "shards"
    status = build_shards.main(["--source", str(videos / "m.csv"), "--output", str(output), *SETTINGS])
    assert status == 0
    return output


def samples(output: Path) -> dict[str, list[dict[str, object]]]:
    """Source id -> its samples, as WebDataset reads them."""
    found: dict[str, list[dict[str, object]]] = {}
    for sample in webdataset.WebDataset(sorted(map(str, output.glob("shards/*.tar"))), shardshuffle=False):
        described = json.loads(sample["json"])
        found.setdefault(described["id"], []).append(described | {"mp4": sample["mp4"], "txt": sample["txt"].decode()})
    return found


def test_every_row_is_accounted_for(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads((output / "dataset.json").read_text())["rows"]
    assert rows == {
        "input": 7,
        "committed": 4,
        "rejected": {"caption_missing": 1},
        "quarantined": {"missing": 1, "undecodable": 1},
    }
    assert verify_shards.main(["--shards", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "proven: 4 units" in printed
    assert ["committed", "4"] in [line.split() for line in printed.splitlines()]


def test_samples_carry_caption_lineage_and_exact_frames(output: Path, videos: Path) -> None:
    found = samples(output)
    assert set(found) == {"bikes.mp4", "carphone_pristine.mp4", "vfr.mkv", "rotated.mp4"}
    for identity, clips in found.items():
        for clip in clips:
            assert clip["txt"] == f"a caption, of {identity}"
            assert clip["extra"] == {"license": "BSD"}
            assert len(decoded(clip["mp4"])) == clip["frames"]
    (vfr,) = found["vfr.mkv"]
    shown = ffprobe_times(videos / "vfr.mkv")
    expected = [max(n for n, t in enumerate(shown) if t <= vfr["start"] + k / 8 + 1e-6) for k in range(vfr["frames"])]
    assert numbers(vfr["mp4"]) == expected, "the frame shown at each eighth of a second"
    (rotated,) = found["rotated.mp4"]
    first = decoded(rotated["mp4"])[0].astype(float)
    shown_turned = ffmpeg_frames(videos / "rotated.mp4", "null", 256, 320)[0]
    square = shown_turned[32:288][::2, ::2].astype(float)
    assert np.abs(first - square).mean() < np.abs(first - np.rot90(square)).mean() / 3, "stored as it is displayed"


def test_another_run_gives_the_same_bytes_and_the_same_command_does_nothing(
    output: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    words = ["--source", str(videos / "m.csv"), "--output", str(again), *SETTINGS]
    assert build_shards.main(words) == 0
    files = {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert files == {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    for name in files:
        assert (again / name).read_bytes() == (output / name).read_bytes(), name
    capsys.readouterr()
    assert build_shards.main(words) == 0
    assert "4 already committed" in capsys.readouterr().out


def test_a_build_without_a_clip_and_one_without_credentials_end_with_one(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"nothing": ["broken.mp4", "absent.mp4", "s3://my bucket/x.mp4"], "closed": ["s3://bucket/x.mp4"]}
    for name, sources in rows.items():
        lines = [f"{video},a caption" for video in sources]
        (videos / f"{name}.csv").write_text("\n".join(["video,caption", *lines, ""]))
    words = ["--source", str(videos / "nothing.csv"), "--output", str(tmp_path / "nothing")]
    assert build_shards.main(words) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("launch/build_shards.py: no clip was committed")
    assert ["quarantined", "3"] in [line.split() for line in said.out.splitlines()]
    words = ["--source", str(videos / "closed.csv"), "--output", str(tmp_path / "closed")]
    assert build_shards.main(words) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("launch/build_shards.py: stopped, because no machine can work")
    assert "row 1, video 's3://bucket/x.mp4': s3://bucket/x.mp4: no S3 credentials" in said.err
    assert list((tmp_path / "closed/units").glob("*")) == []
    (videos / "nothing.csv").unlink()
    (videos / "closed.csv").unlink()


def test_wrong_input_is_refused_before_any_work(
    output: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, new = ["--source", str(videos / "m.csv")], ["--output", str(tmp_path / "new")]
    cases = [
        ([*source, "--output", str(output)], "planned with other settings"),
        ([*source, *new, "clip.fsp=4"], "did you mean 'clip.fps'"),
        ([*source, *new, "split.val=2"], "must leave a share for training"),
        (["--source", str(videos / "nothing"), *new], "does not exist"),
        ([*new], "source must be set"),
        ([*source, "--output", "s3://key:hush@bucket/x"], "must not hold credentials"),
    ]
    for words, message in cases:
        assert build_shards.main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "hush" not in error
    assert not (tmp_path / "new").exists()


def test_help_lists_the_keys() -> None:
    shown = run("launch/build_shards.py", "--help")
    assert shown.returncode == 0
    for key in ("source=required", "clip.fps=8", "sources.untrusted=false", "run.cpus=0", "shard_bytes=256000000"):
        assert key in shown.stdout

"""launch/reconstruct.py on videos of which a test knows every frame, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from launch.reconstruct import main
from tests.data_pipeline.dataset.tiny_dataset import real_video
from tests.tools.frames import open_frames
from tests.trainer.evaluation.conftest import MakeRamp


def test_duration_by_ffprobe(tiny_model_directory: Path, tmp_path: Path, grey_ramp: MakeRamp) -> None:
    video = grey_ramp(tmp_path / "in.mp4", 30, 29.97)
    output = tmp_path / "out.mp4"
    words = ["--model", str(tiny_model_directory), "--source", str(video), "--output", str(output)]
    assert main(words) == 0

    def probe(path: Path) -> list[str]:
        command = [
            "ffprobe",
            "-v",
            "error",
            "-show_entries",
            "stream=r_frame_rate,nb_frames,duration",
            "-of",
            "csv=p=0",
        ]
        return subprocess.run([*command, str(path)], check=True, capture_output=True, text=True).stdout.split(",")

    assert probe(output) == probe(video)


def test_a_refused_video_leaves_no_output(
    tiny_model_directory: Path, tmp_path: Path, grey_ramp: MakeRamp, capsys: pytest.CaptureFixture[str]
) -> None:
    video = grey_ramp(tmp_path / "short.mp4", 3, 25)
    output = tmp_path / "out" / "short.mp4"
    words = ["--model", str(tiny_model_directory), "--source", str(video), "--output", str(output)]
    assert main(words) == 2
    assert "only 3 frames" in capsys.readouterr().err
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("words", [["--batch", "0"], ["--interval", "0"], ["--interval", "-1"], ["--device", "gpu"]])
def test_values_are_refused_by_option(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["--model", str(tmp_path), "--source", str(tmp_path / "a.mp4"), "--output", str(tmp_path / "b.mp4")]
    assert main([*inputs, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument {words[0]}: {words[1]} must be" in line


def test_places_may_be_written_as_file_addresses_and_the_video_itself_stays(
    tiny_model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The left half of what is written is the real video, frame by frame."""
    video = Path(shutil.copy(real_video("bikes.mp4"), tmp_path))
    before, output = video.read_bytes(), tmp_path / "out.mp4"
    words = ["--model", f"file://{tiny_model_directory}", "--source", f"file:{video}", "--interval", "10"]
    assert main([*words, "--output", f"file://{video}"]) == 2
    assert f"--output {video} is the same file as one of --source {video}" in capsys.readouterr().err
    assert main([*words, "--output", f"file://{output}"]) == 0
    assert video.read_bytes() == before
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"]
    count = int(subprocess.run([*command, str(video)], check=True, capture_output=True, text=True).stdout)
    with open_frames(video) as reader:
        source = [frame for number, frame in enumerate(reader) if number % 10 == 0]
    with open_frames(output) as reader:
        shown = list(reader)
    assert len(shown) == len(source) == -(-count // 10)
    for left, frame in zip(shown, source, strict=True):
        side = min(frame.shape[:2])
        top, beside = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
        square = frame[top : top + side, beside : beside + side].astype(float)
        assert abs(left[:, :32].astype(float).mean() - square.mean()) < 4, "the same brightness, after H.264"
    assert np.std([frame.mean() for frame in source]) > 0

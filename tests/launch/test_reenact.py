"""launch/reenact.py on videos of which a test knows every frame, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from launch.reenact import main
from tests.data_pipeline.dataset.tiny_dataset import real_video
from tests.tools.frames import open_frames
from tests.trainer.evaluation.conftest import MakeRamp


def test_reenactment_is_as_long_as_the_shorter_video(
    tiny_model_directory: Path, tmp_path: Path, grey_ramp: MakeRamp
) -> None:
    a, b = grey_ramp(tmp_path / "a.mp4", 9, 25, step=20), grey_ramp(tmp_path / "b.mp4", 7, 50, step=9)
    output = tmp_path / "mixed.mp4"
    arguments = [
        "--model",
        str(tiny_model_directory),
        "--structure",
        str(a),
        "--dynamics",
        str(b),
        "--output",
        str(output),
    ]
    assert main([*arguments, "--interval", "1"]) == 0
    with open_frames(output) as reader:
        shown = np.stack(list(reader))
        assert reader.fps == 25
    assert shown.shape == (7, 32, 104, 3)
    assert [round(frame[:, :30].mean() / 20) for frame in shown] == list(range(7))
    assert [round(frame[:, 38:66].mean() / 9) for frame in shown] == list(range(7))


def test_the_shorter_of_two_videos_is_named(
    tiny_model_directory: Path, tmp_path: Path, grey_ramp: MakeRamp, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = grey_ramp(tmp_path / "short.mp4", 3, 25), grey_ramp(tmp_path / "long.mp4", 9, 25)
    output = tmp_path / "mixed.mp4"
    for structure, dynamics in ((short, long), (long, short)):
        words = ["--model", str(tiny_model_directory), "--structure", str(structure), "--dynamics", str(dynamics)]
        assert main([*words, "--output", str(output)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{short}: only 3 frames" in line
        assert str(long) not in line
    assert not output.exists()


def test_two_real_videos_by_their_file_addresses(tiny_model_directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "mixed.mp4"
    places = {
        "--model": tiny_model_directory,
        "--structure": real_video("bikes.mp4"),
        "--dynamics": real_video("carphone_pristine.mp4"),
        "--output": output,
    }
    words = [word for option, path in places.items() for word in (option, f"file://{path}")]
    assert main([*words, "--interval", "20"]) == 0
    lengths = []
    for option in ("--structure", "--dynamics"):
        with open_frames(places[option]) as reader:
            lengths.append(-(-sum(1 for _ in reader) // 20))
    with open_frames(output) as reader:
        shown = np.stack(list(reader))
    assert shown.shape == (min(lengths), 32, 104, 3)

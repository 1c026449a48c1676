"""What launch/evaluate.py refuses, in one line and before it measures: words, places, datasets, outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.evaluate import main
from tests.trainer.evaluation.conftest import MakeRamp


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nowhere"], "--source nowhere does not exist"),
        (["--source", ".", "--lpips", "no.st"], "--lpips: no.st: No such file or directory; docs/evaluation.md"),
        (["--source", ".", "--fvd", "no.pt"], "--fvd no.pt is no file"),
        (["--source", ".", "--few-clips"], "mean nothing without --fvd"),
    ],
)
def test_mistakes_end_with_a_message(
    tiny_model_directory: Path, grey_ramp: MakeRamp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str,
) -> None:  # fmt: skip
    grey_ramp(tmp_path / "a.mp4", 8, 25)
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(tiny_model_directory), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments --shards --source is required"),
        (["--shards", "a", "--source", "b"], "argument --source: not allowed with argument --shards"),
        (["--shards", "a", "--interval", "2"], "--interval means nothing with --shards; leave it away"),
        (["--shards", "a", "--list", "l"], "--list means nothing with --shards"),
        (["--source", "a", "--split", "val"], "--split means nothing with --source"),
        (["--source", "a", "--resize", "64"], "--resize means nothing with --source"),
        (["--shards", "a", "--split", "dev"], "argument --split: invalid choice: 'dev'"),
        (["--source", "a", "--batch", "0"], "argument --batch: 0 must be a whole number of at least 1"),
        (["--source", "a", "--interval", "-2"], "argument --interval: -2 must be a whole number of at least 1"),
        (["--source", "a", "--interval", "0"], "argument --interval: 0 must be"),
        (["--source", "a", "--max-windows", "-1"], "argument --max-windows: -1 must be"),
        (["--source", "a", "--frames", "0"], "argument --frames: 0 must be"),
        (["--source", "a", "--device", "gpu"], "argument --device: gpu must be auto, cpu, cuda or cuda:N"),
        (["--source", "a", "--untrained", "--checkpoints", "r"], "--untrained means nothing with --checkpoints"),
        (["--shards", "a", "--protocol", "mcl-jcv"], "--protocol means nothing with --shards"),
        (["--source", "a", "--protocol", "davis"], "argument --protocol: invalid choice: 'davis'"),
    ],
)
def test_words_are_refused_before_the_model_is_looked_for(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["--model", "nowhere", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_missing_split_is_refused_before_anything_is_measured(
    tiny_model_directory: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "measured"
    command = ["--model", str(tiny_model_directory), "--shards", str(shards), "--output", str(output)]
    assert main([*command, "--split", "val", "test"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"--shards {shards} --split test: " in printed.err
    assert not output.exists()


def test_a_dataset_is_not_taken_for_videos_nor_the_other_way_round(
    tiny_model_directory: Path, shards: Path, grey_ramp: MakeRamp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(tiny_model_directory)]
    assert main([*model, "--source", str(shards)]) == 2
    assert f"--source {shards} is a dataset of shards; give it as --shards {shards}" in capsys.readouterr().err
    assert main([*model, "--source", "s3://bucket/x"]) == 2
    assert "must be a local file or folder" in capsys.readouterr().err
    video = grey_ramp(tmp_path / "videos" / "a.mp4", 8, 25)
    assert main([*model, "--shards", str(video.parent)]) == 2
    assert f"--shards {video.parent} --split val: " in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("a.mp4\n")
    assert main([*model, "--source", str(video), "--list", str(tmp_path / "list.txt")]) == 2
    assert "chooses among the videos of a folder" in capsys.readouterr().err
    assert main([*model, "--shards", str(shards), "--resize", "16"]) == 2
    assert "--resize 16 is smaller than the model's 32 pixels" in capsys.readouterr().err


def test_a_report_lies_neither_in_the_shards_nor_in_the_model_and_replaces_nothing_that_is_read(
    tiny_model_directory: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", str(tiny_model_directory), "--shards", str(shards), "--max-windows", "1"]
    before = {path: path.read_bytes() for folder in (shards, tiny_model_directory) for path in folder.rglob("*.*")}
    for folder, option in ((shards, "--shards"), (tiny_model_directory, "--model")):
        assert main([*command, "--output", str(folder / "measured")]) == 2
        assert f"--output {folder / 'measured'} lies in {option} {folder}; name" in capsys.readouterr().err
        assert not (folder / "measured").exists()
    for read, option in ((shards / "dataset.json", "--shards"), (tiny_model_directory / "config.yaml", "--model")):
        output = shards.parent / "measured"
        output.mkdir(exist_ok=True)
        (output / "report.json").symlink_to(read)
        assert main([*command, "--output", str(output)]) == 2
        said = capsys.readouterr().err
        assert f"--output {output / 'report.json'} is the same file as one of {option}" in said
        (output / "report.json").unlink()
    assert main([*command, "--output", str(shards)]) == 2
    assert f"--output {shards} is the same folder as --shards {shards}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("option", "place", "message"),
    [
        ("--source", "file://elsewhere/a.mp4", "is no file of this machine; write file:///PATH or the plain path"),
        ("--source", "file:a.mp4", "is no file of this machine"),
        ("--output", "s3://bucket/a.json", "s3://bucket/a.json must be a file or folder of this machine"),
        ("--lpips", "a\0b", "'a\\x00b' holds a NUL byte; remove it"),
        ("--model", "file:///a\0b", "'file:///a\\x00b' holds a NUL byte; remove it"),
    ],
)
def test_a_place_that_cannot_be_is_refused_by_its_option(
    capsys: pytest.CaptureFixture[str], option: str, place: str, message: str
) -> None:
    words = {"--model": "nowhere", "--source": "a.mp4"} | {option: place}
    assert main([word for pair in words.items() for word in pair]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"launch/evaluate.py: argument {option}: ")
    assert message in line


def test_a_list_in_another_encoding_is_refused_by_file_line_and_byte(
    tiny_model_directory: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes("bikes.mp4\nv\xe9lo.mp4\n".encode("latin-1"))
    words = ["--model", str(tiny_model_directory), "--source", str(videos), "--list", str(listing)]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = f"{listing} line 2 holds the byte 0xe9, which is not UTF-8; save the file as UTF-8"
    assert line == f"launch/evaluate.py: {said}"
    listing.write_bytes(b"\xef\xbb\xbfbikes.mp4\n")  # as an editor of Windows saves UTF-8
    assert main([*words, "--max-windows", "1"]) == 0


def test_a_gpu_that_torch_cannot_use_is_refused_before_the_model_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine whose /dev has a GPU, with a torch that finds none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("trainer.engine.device.sign_of_gpu", lambda root: "/dev/nvidia0")
    assert main(["--model", "nowhere", "--source", "a.mp4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--device auto: this machine has a GPU (/dev/nvidia0), and torch cannot use it: " in line
    assert line.endswith("; or pass --device cpu to use the processor")
    assert main(["--model", "nowhere", "--source", "a.mp4", "--device", "cpu"]) == 2
    assert "nowhere" in capsys.readouterr().err

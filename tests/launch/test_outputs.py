"""No script writes over its input or begins work whose result it could not write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_pipeline.read.latent_dataset import LatentDataset
from launch import (
    build_shards,
    convert_official,
    evaluate,
    export,
    make_manifest,
    reconstruct,
    reenact,
    report_shards,
    train,
)
from launch.inputs import collection, model, shards, speaking_of, videos
from launch.outputs import check_output_file, check_output_folder
from tests.data_pipeline.latents_dataset import make_clips, write_latents
from tests.launch.scripts import run

CONTENT = b"precious"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    file = tmp_path / "videos" / "a.mp4"
    file.parent.mkdir()
    file.write_bytes(CONTENT)
    return file


def ways(video: Path, tmp_path: Path) -> dict[str, Path]:
    """Names of the same file."""
    (tmp_path / "soft.mp4").symlink_to(video)
    os.link(video, tmp_path / "hard.mp4")
    (tmp_path / "folder").symlink_to(video.parent)
    return {
        "itself": video,
        "dots": video.parent / ".." / "videos" / "a.mp4",
        "symbolic link": tmp_path / "soft.mp4",
        "hard link": tmp_path / "hard.mp4",
        "linked folder": tmp_path / "folder" / "a.mp4",
    }


def test_an_output_that_is_an_input_is_refused_by_whatever_name(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(b"x")
    for name, output in ways(video, tmp_path).items():
        model = ["--model", str(tmp_path), "--output", str(output)]
        for main, inputs in (
            (reconstruct.main, ["--source", str(video)]),
            (reenact.main, ["--structure", str(video), "--dynamics", str(other)]),
            (reenact.main, ["--structure", str(other), "--dynamics", str(video)]),
        ):
            assert main([*model, *inputs]) == 2, name
            (line,) = capsys.readouterr().err.splitlines()
            assert f"--output {output} is the same file as one of --" in line
            assert str(video) in line or "--model" in line
    assert video.read_bytes() == CONTENT


def test_a_file_below_a_folder_is_an_input_where_the_script_reads_it(tmp_path: Path) -> None:
    """Every kind of folder, with the names that are read of it and others."""
    kinds = {
        videos: (["a.mp4", "deep/b.MKV", "c.yuv", "a.txt", "captions.csv"], ["a.json", "deep/captions.csv", "b.html"]),
        collection: (["a.avi", "classInd.txt"], ["captions.csv", "ucf.parquet"]),
        shards: (["dataset.json", "units/000000.json", "shards/a/b.tar"], ["report.json", "sub/dataset.json"]),
        model: (["config.yaml", "model.safetensors"], ["report.json", "deep/config.yaml"]),
        str: (["a.mp4", "deep/b.json"], []),  # of a folder of which nothing is said
    }
    for kind, (read, other) in kinds.items():
        for name in (*read, *other):
            folder = tmp_path / kind.__name__
            file, link = folder / name, tmp_path / "link.out"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(CONTENT)
            link.symlink_to(file)
            for output in (file, link):
                suffixes = (output.suffix.lower(),)
                if name in other:
                    check_output_file(output, suffixes, {"--source": kind(folder)})
                    continue
                with pytest.raises(ValueError, match="is the same file as one of --source"):
                    check_output_file(output, suffixes, {"--source": kind(folder)})
                with pytest.raises(ValueError, match="is the same file as one of --source"):
                    check_output_file(output, suffixes, {"--source": kind(file)})  # the file alone as well
            link.unlink()


def test_a_record_of_a_dataset_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shards"
    (folder / "units").mkdir(parents=True)
    record = folder / "units" / "000000.json"
    record.write_bytes(CONTENT)
    output = tmp_path / "measured"
    output.mkdir()
    (output / "report.json").symlink_to(record)
    words = ["--model", str(tmp_path / "model"), "--shards", str(folder), "--output", str(output)]
    assert evaluate.main(words) == 2
    assert f"is the same file as one of --shards {folder}" in capsys.readouterr().err
    (tmp_path / "link.html").symlink_to(record)
    assert report_shards.main(["--shards", str(folder), "--output", str(tmp_path / "link.html")]) == 2
    assert "is the same file as one of --shards" in capsys.readouterr().err
    assert record.read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["units/report.json", "shards/deep/er/report.json", "link/report.json"])
def test_nothing_new_is_written_among_the_files_of_a_dataset(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for part in ("units", "shards"):
        (folder / part).mkdir(parents=True)
    (folder / "link").symlink_to(folder / "units")
    with pytest.raises(ValueError, match=r"lies among the files of --shards .*; name a file outside of them"):
        check_output_file(folder / name, (".json",), {"--shards": shards(folder)})
    with pytest.raises(ValueError, match=r"lies among the files of --shards .*; name a folder outside of them"):
        check_output_folder((folder / name).with_suffix(""), {"--shards": shards(folder)})
    check_output_file(folder / "report.json", (".json",), {"--shards": shards(folder)})
    with pytest.raises(ValueError, match=r"other lies in --shards .*; name a folder outside of it"):
        check_output_folder(folder / "other", {"--shards": shards(folder)})
    assert not any(file.is_file() for file in folder.rglob("*"))


@pytest.mark.parametrize(
    ("main", "words", "suffixes"),
    [
        (reconstruct.main, ["--model", "m", "--source", "{video}"], ".mp4 or .mkv or .mov"),
        (report_shards.main, ["--shards", "{video}"], ".html or .htm"),
        (make_manifest.main, ["mcl-jcv", "--source", "{folder}"], ".csv or .parquet"),
    ],
    ids=["reconstruct", "report_shards", "make_manifest"],
)
@pytest.mark.parametrize("name", ["x", "x.gif", "a.mp4.txt"])
def test_another_ending_is_refused_by_the_name_of_the_output(
    main: object, words: list[str], suffixes: str, name: str, video: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert callable(main)
    filled = [word.format(video=video, folder=video.parent) for word in words]
    assert main([*filled, "--output", str(tmp_path / name)]) == 2
    assert f"--output {tmp_path / name} must end in {suffixes}" in capsys.readouterr().err


def test_what_cannot_be_written_is_refused_before_work(video: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    cases = {
        tmp_path / "folder.mp4": r"is a folder; name a file",
        video / "b.mp4": rf"cannot be written: {video} is not a folder",
        tmp_path / "nowhere" / "b.mp4": r"nowhere is not a folder",
        Path("/proc/x/b.mp4"): r"cannot be written: no files can be made in /proc",  # not by root either
        Path("/proc/b.mp4"): r"cannot be written: no files can be made in /proc",
    }
    for output, message in cases.items():
        with pytest.raises(ValueError, match=message):
            check_output_file(output, (".mp4",), {"--source": video})
    device = tmp_path / "null.mp4"
    device.symlink_to("/dev/null")
    with pytest.raises(ValueError, match="is a device; name a file"):
        check_output_file(device, (".mp4",), {})


def test_new_outputs_and_results_of_earlier_runs_are_accepted(video: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "out.mp4"
    earlier.write_bytes(b"of an earlier run")
    inputs = {"--source": video, "--list": None, "--model": "s3://bucket/model", "--fvd": tmp_path / "missing"}
    for output in (earlier, tmp_path / "new" / "deep" / "out.MP4", Path("out.mp4"), video.with_name("b.mp4")):
        check_output_file(output, (".mp4",), inputs)
    check_output_folder(tmp_path / "new", inputs)
    assert not (tmp_path / "new").exists(), "looking makes nothing"


def test_folders_that_hold_something_or_are_the_input_are_refused(
    video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = video.parent / "config.yaml"
    config.write_text("model: {}\n")
    released = ["--checkpoint", str(video), "--config", str(config), "--output", str(video.parent)]
    assert convert_official.main(released) == 2
    assert f"--output {video.parent} exists and is not empty; choose another" in capsys.readouterr().err
    assert export.main(["--checkpoint", str(video.parent), "--output", str(video.parent)]) == 2
    assert "is the same folder as --checkpoint" in capsys.readouterr().err
    assert config.read_text() == "model: {}\n"
    latents = tmp_path / "latents"
    latents.mkdir()
    words = ["--model", "x", "--format", "diffusers", "--statistics", str(latents), "--output", str(latents / "model")]
    assert export.main(words) == 2
    assert f"--output {latents / 'model'} lies in --statistics {latents}; name a" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"output=.*a\.mp4 is a file; name a folder"):
        check_output_folder(video, {}, option="output=", empty=False)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("launch/build_shards.py", ["--source", "{folder}", "--output", "{link}"]),
        ("launch/train.py", ["output={link}", "data.shards={folder}", "loss.perceptual=none"]),
        ("launch/train.py", ["output={folder}", "init_from={link}", "data.shards=x", "loss.perceptual=none"]),
        ("launch.demo", ["--source", "{folder}", "--output", "{link}"]),
    ],
)
def test_a_run_or_dataset_does_not_go_into_its_own_source(
    script: str, words: list[str], video: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(video.parent)
    done = run(script, *(word.format(folder=video.parent, link=tmp_path / "link") for word in words))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "is the same folder as" in line
    assert [file.name for file in video.parent.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("address", ["file:{}", "file://{}", "FILE://{}"])
def test_an_input_that_is_named_by_its_file_address_is_known(
    video: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    words = ["--model", "nowhere", "--source", address.format(video), "--output", str(video)]
    assert reconstruct.main(words) == 2
    assert "is the same file as one of --source" in capsys.readouterr().err
    assert video.read_bytes() == CONTENT


def test_a_build_does_not_write_into_its_source(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--source", str(video.parent), "--output", f"file://{video.parent}"]
    assert build_shards.main(words) == 2
    assert "is the same folder as source" in capsys.readouterr().err
    assert list(video.parent.iterdir()) == [video]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output={run}", "data.shards={shards}", "init_from={run}/model"], "output={run}/model is the same folder"),
        (["output={model}", "data.shards={shards}"], "output={model} is a model directory"),
        (
            ["output={run}", "data.shards={shards}", "checkpoint.upload=file://{shards}"],
            "checkpoint.upload={shards} is",
        ),
        (
            ["output={run}", "data.shards=s3://b/a", "checkpoint.upload=s3://b/a/"],
            "lies in data.shards=s3://b/a; name a folder outside of it",
        ),
        (["output=", "data.shards={shards}"], "output= is empty"),
        (["output={run}", "data.shards="], "data.shards= is empty"),
    ],
)
def test_a_training_writes_over_neither_data_nor_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    places = {"run": tmp_path / "run", "shards": tmp_path / "shards", "model": tmp_path / "model"}
    for folder in (places["run"] / "model", places["shards"], places["model"]):
        folder.mkdir(parents=True)
    (places["model"] / "model.safetensors").write_bytes(CONTENT)
    words = [word.format(**places) for word in words]
    assert train.main(["--config", "configs/train/demo.yaml", *words]) == 2
    assert message.format(**places) in capsys.readouterr().err
    assert (places["model"] / "model.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize("words", [["--source", "", "--output", "a"], ["--output=", "--source", "a"]])
def test_an_empty_word_is_not_the_current_folder(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert build_shards.main(words) == 2
    assert "is empty; name something" in capsys.readouterr().err


def test_a_model_whose_settings_are_no_yaml_is_refused(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (video.parent / "config.yaml").write_text("model: [")
    (video.parent / "model.safetensors").write_bytes(CONTENT)
    assert evaluate.main(["--model", str(video.parent), "--source", str(video)]) == 2
    assert "config.yaml is not a YAML file: " in capsys.readouterr().err
    (video.parent / "config.yaml").write_bytes(b"# a model\nmodel: {}  # caf\xe9\n")
    assert evaluate.main(["--model", str(video.parent), "--source", str(video)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.yaml is not a YAML file: line 2 holds the byte 0xe9, which is not UTF-8; save" in line


def test_refusals_speak_of_the_options_that_a_script_has(tmp_path: Path) -> None:
    """As launch/decode_latents.py does; a dataset of latents without the split that is asked for."""
    write_latents(tmp_path / "latents", [make_clips(2)])
    with pytest.raises(ValueError, match="--split 'test'"), speaking_of({"data.split=": "--split "}):
        LatentDataset(str(tmp_path / "latents"), "test")
    with pytest.raises(ValueError, match=r"data\.split='test'"):
        LatentDataset(str(tmp_path / "latents"), "test")

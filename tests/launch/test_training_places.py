"""A training that names what is not there is refused in one line, before it prints or starts anything."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from data_pipeline.dataset.config import LatentDtype
from launch import train
from launch.training_places import check_latent_inputs, check_outputs
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.data_pipeline.latents_dataset import make_clips as make_latent_clips
from tests.data_pipeline.latents_dataset import settings_of, write_latents
from tests.trainer.cases import tiny_config
from tests.trainer.diffusion.cases import tiny_config as tiny_diffusion
from trainer.config.loader import changed_keys, load_config, to_yaml
from trainer.config.train import TrainConfig

LPIPS = "loss={{{{perceptual: lpips, lpips_weights: {{folder}}/{}.safetensors}}}}"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset, a broken one, a file, and a configuration file that names the first."""
    folder = tmp_path_factory.mktemp("places")
    data = write_dataset(folder / "data", split_into_shards(make_clips(4, frames=(9,)), [4]))
    broken = Path(shutil.copytree(data, folder / "broken"))
    (broken / "dataset.json").write_text("{")
    (folder / "x.safetensors").write_text("x")
    save_file({"features.0.weight": torch.zeros(64, 3, 5, 5)}, folder / "other.safetensors")
    (folder / "model").mkdir()
    save_file({"logvar": torch.zeros(1)}, folder / "model" / "model.safetensors")
    (folder / "file").write_text("x")
    settings = folder / "settings.yaml"
    settings.write_text(to_yaml(tiny_config("unused", f"data.shards={data}")))
    return {"folder": folder, "data": data, "broken": broken, "file": folder / "file", "settings": settings}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.shards={folder}/none", "data.shards={folder}/none: no dataset.json there"),
        ("data.shards=file://{folder}/none", "data.shards={folder}/none: no dataset.json there"),
        ("data.shards=file:none", "data.shards='file:none' is no file of this machine; write file:///PATH"),
        ("data.shards=~nobody-has-this-name", "~nobody-has-this-name: no dataset.json there"),
        ("data.shards={file}", "data.shards={file}: no dataset.json there"),
        ("data.shards={broken}", "{broken}/dataset.json is damaged"),
        ("data.shards=???", "data.shards="),
        ("output=/proc/run", "output=/proc/run cannot be written: no files can be made in /proc"),
        ("output={file}/run", "output={file}/run cannot be written: {file} is not a folder"),
        ("output=file://host/run", "output='file://host/run' is no file of this machine"),
        ("output={data}/shards/run", "output={data}/shards/run lies in data.shards={data}"),
        ("checkpoint.upload={data}/shards", "checkpoint.upload={data}/shards lies in data.shards={data}"),
        ("checkpoint.staging=s3://bucket/memory", "checkpoint.staging=s3://bucket/memory must be an absolute path"),
        ("checkpoint.staging=memory", "checkpoint.staging=memory must be an absolute path"),
        ("init_from={folder}/none", "init_from={folder}/none: {folder}/none/model.safetensors not found"),
        ("init_from=file://{folder}/none", "init_from={folder}/none: {folder}/none/model.safetensors not found"),
        ("init_from=s3://bucket/model", "init_from=s3://bucket/model must be a directory of this machine"),
        ("loss={{perceptual: lpips, lpips_weights: {folder}/none}}", "loss.lpips_weights={folder}/none: no such file"),
        (LPIPS.format("x"), "loss.lpips_weights={folder}/x.safetensors: {folder}/x.safetensors is not a complete"),
        (LPIPS.format("other"), "loss.lpips_weights={folder}/other.safetensors: {folder}/other.safetensors: weight"),
        ("init_from={folder}/model", "init_from={folder}/model: {folder}/model/model.safetensors: weight"),
    ],
)
def test_what_is_not_there_is_the_only_line(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    word: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(train, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=None, SIG_DFL=None))
    words = ["--config", str(places["settings"]), f"output={tmp_path / 'run'}", word.format(**places)]
    assert train.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("launch/train.py: ")
    assert message.format(**places) in line
    assert list(tmp_path.iterdir()) == []


def test_places_in_the_home_directory_are_told_apart_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for words, message in (
        (["~/data/run", "data.shards=~/data"], r"^output=.*/data/run lies in data\.shards=~/data"),
        (
            ["~/run", "data.shards=~/data", "checkpoint.upload=~/run/up"],
            r"^checkpoint\.upload=~/run/up lies in output=",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            check_outputs(tiny_config(*words))


def test_a_dataset_of_another_kind_or_a_dit_that_is_not_there_is_refused_by_the_setting_that_names_it(
    places: dict[str, Path], tmp_path: Path
) -> None:
    write_latents(tmp_path / "latents", [make_latent_clips(2)], settings_of(LatentDtype.fp16))
    for shards, text, message in (
        (places["data"], "", rf"^data.shards={places['data']} is a dataset of clips; give one of latents"),
        (
            tmp_path / "latents",
            tmp_path / "latents",
            r"^data.text=.* is a dataset of latents; give one of texts",
        ),
        (tmp_path / "latents", tmp_path / "none", r"^data.text=.*/none: no dataset.json there"),
    ):
        words = [f"data.shards={shards}", *([f"data.text={text}", "dit.condition=text"] if text else [])]
        with pytest.raises(ValueError, match=message):
            check_latent_inputs(tiny_diffusion(str(tmp_path / "run"), *words))
    words = [f"data.shards={tmp_path / 'latents'}"]
    check_latent_inputs(tiny_diffusion(str(tmp_path / "run"), *words))
    with pytest.raises(ValueError, match=r"^init_from=.*/none: .*/none/config.json not found; name a directory"):
        check_latent_inputs(tiny_diffusion(str(tmp_path / "run"), *words, f"init_from={tmp_path / 'none'}"))


def test_checkpoints_are_not_uploaded_into_their_own_run(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--config", str(places["settings"]), f"output={run}", f"data.shards={places['data']}"]
    for upload in (run, run / "copies"):
        assert train.main([*words, f"checkpoint.upload={upload}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"checkpoint.upload={upload} lies in output={run}" in line


def test_a_fork_does_not_write_into_its_parent(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = tmp_path / "parent"
    (parent / "checkpoints").mkdir(parents=True)
    words = ["--config", str(places["settings"]), f"data.shards={places['data']}", f"fork_from={parent}@600"]
    for output, message in ((parent, "is the same folder as fork_from"), (parent / "fork", "lies in fork_from=")):
        assert train.main([*words, f"output={output}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"output={output} {message}" in line


def test_every_place_may_be_written_as_a_file_address(tmp_path: Path) -> None:
    keys = (
        "output",
        "init_from",
        "fork_from",
        "data.shards",
        "data.cache_dir",
        "loss.lpips_weights",
        "checkpoint.upload",
        "checkpoint.staging",
    )
    config = load_config(TrainConfig, [], [f"{key}=file://{tmp_path}/{key}" for key in keys])
    words = dict(word.split("=", 1) for word in changed_keys(config))
    assert words == {key: f"{tmp_path}/{key}" for key in keys}


@pytest.mark.parametrize("upload", ["s3://bucket/shards", "s3://bucket/shards/", "s3://bucket//shards/run"])
def test_checkpoints_are_not_uploaded_among_the_data_on_a_store(upload: str, tmp_path: Path) -> None:
    words = [f"output={tmp_path / 'run'}", "data.shards=s3://bucket/shards", f"checkpoint.upload={upload}"]
    message = f"checkpoint.upload={upload} lies in data.shards=s3://bucket/shards; name a folder outside of it"
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_outputs(load_config(TrainConfig, [], [*words, "loss.perceptual=none"]))
    words[-1] = "checkpoint.upload=s3://bucket/shards-of-run"
    check_outputs(load_config(TrainConfig, [], [*words, "loss.perceptual=none"]))


def test_another_runs_folder_is_no_place_for_uploads(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "lock").touch()
    words = [f"output={tmp_path / 'run'}", "data.shards=s3://bucket/shards", "loss.perceptual=none"]
    for upload in (other, other / "checkpoints"):
        with pytest.raises(
            ValueError, match=f"checkpoint.upload={upload} belongs to the run in {other}; name a folder"
        ):
            check_outputs(load_config(TrainConfig, [], [*words, f"checkpoint.upload={upload}"]))
    check_outputs(load_config(TrainConfig, [], [*words, f"checkpoint.upload={tmp_path / 'copies'}"]))

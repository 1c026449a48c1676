"""Latents back to pixels: those of `VidTwin.decode`, of datasets and of files, and what the words cannot mean."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import webdataset
from torch import Tensor

from data_pipeline.dataset.description import read_dataset
from data_pipeline.read.latent_dataset import LatentDataset
from data_pipeline.read.normalization import Normalization
from data_pipeline.store.local import LocalStore
from launch.decode_latents import main
from model.network import Latents
from model.vidtwin import VidTwin
from tests.launch.scripts import run
from tests.tools.frames import open_frames
from trainer.evaluation.pictures import VideoWriter
from trainer.latents import decode
from trainer.latents.decode import decode_batch


def stored(latents: LocalStore) -> dict[str, Latents]:
    """Key -> latents with a batch axis, by webdataset and safetensors."""
    urls = [str(file) for file in sorted((latents.root / "shards").glob("*.tar"))]
    found = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        tensors = {name: value.float()[None] for name, value in safetensors.torch.load(sample["safetensors"]).items()}
        dynamics = torch.cat([tensors["dynamics_w"], tensors["dynamics_h"]], dim=-1)
        found[sample["__key__"]] = Latents(tensors["structure"], dynamics)
    return found


@torch.no_grad()
def pixels(network: VidTwin, latents: Latents) -> Tensor:
    """What the model shows, [3, T, S, S] in [0, 1]."""
    return (network.decode(latents)[0].clamp(-1, 1) + 1) / 2


def shown(file: Path) -> tuple[np.ndarray, Fraction]:
    """Frames [T, S, S, 3] and rate of a video."""
    with open_frames(file) as reader:
        return np.stack(list(reader)), reader.fps


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[np.ndarray]]:
    """Name of each video that is written -> its frames, before an encoder changes their pixels."""
    frames: dict[str, list[np.ndarray]] = {}

    class Watched(VideoWriter):
        def write(self, frame: np.ndarray) -> None:
            frames.setdefault(self.path.name, []).append(frame)
            super().write(frame)

    monkeypatch.setattr(decode, "VideoWriter", Watched)
    return frames


def is_seen(frames: list[np.ndarray], expected: Tensor, most: float = 0.51) -> bool:
    """Whether frames [S, S, 3] are these pixels [3, T, S, S], rounded to whole numbers of 255."""
    wanted = expected.permute(1, 2, 3, 0).numpy() * 255.0
    return np.shape(frames) == wanted.shape and bool(np.abs(np.stack(frames) - wanted).max() <= most)


def test_a_batch_is_decoded_as_the_model_does(latents: LocalStore, network: VidTwin) -> None:
    """Pixel for pixel, in one batch or one after the other."""
    samples = list(stored(latents).values())[:5]
    together = decode_batch(network, *(torch.cat(values) for values in zip(*samples, strict=True)))
    for number, sample in enumerate(samples):
        assert torch.equal(decode_batch(network, *sample)[0], pixels(network, sample))
        torch.testing.assert_close(together[number], pixels(network, sample), rtol=0, atol=1e-5)


def test_normalised_latents_are_decoded_by_the_inverse(latents: LocalStore, network: VidTwin) -> None:
    described = read_dataset(latents).latents
    assert described is not None
    plain, scaled = LatentDataset(str(latents.root)), LatentDataset(str(latents.root), normalize=True)
    expected = decode_batch(network, plain[0]["structure"][None], plain[0]["dynamics"][None])
    found = decode_batch(
        network, scaled[0]["structure"][None], scaled[0]["dynamics"][None], normalization=Normalization.of(described)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_script_shows_a_dataset(
    latents: LocalStore, model: Path, network: VidTwin, tmp_path: Path, written: dict[str, list[np.ndarray]]
) -> None:
    words = ["--model", str(model), "--latents", str(latents.root), "--output"]
    assert main([*words, str(tmp_path / "here"), "--split", "val"]) == 0
    expected = {key: sample for key, sample in stored(latents).items() if key.startswith("phone-")}
    assert written.keys() == {f"{key}.mp4" for key in expected}
    for key in expected:
        frames = written[f"{key}.mp4"]
        fitting = [other for other, sample in expected.items() if is_seen(frames, pixels(network, sample))]
        assert fitting == [key]
    done = run("launch/decode_latents.py", *words, str(tmp_path / "all"), "--split", "val")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'all'}: {len(expected)} videos\n"
    assert {file.stem for file in (tmp_path / "all").iterdir()} == expected.keys()
    for key in expected:
        kept, fps = shown(tmp_path / "all" / f"{key}.mp4")
        assert kept.shape == (4, 32, 32, 3)
        assert fps == read_dataset(latents).fps
        luma = kept.astype(float).mean(axis=-1)
        wanted = np.stack(written[f"{key}.mp4"]).astype(float).mean(axis=-1)
        # an untrained model shows noise, of which the encoder of videos keeps so much
        assert np.corrcoef(luma.ravel(), wanted.ravel())[0, 1] > 0.8, (
            "an untrained model shows noise, of which an encoder keeps so much"
        )
    first, second, *_ = expected
    picked = [*words, str(tmp_path / "some"), "--split", "val", "--key", second, first, "--fps", "23.976"]
    assert main([*picked, "--limit", "1"]) == 0
    assert [file.name for file in (tmp_path / "some").iterdir()] == [f"{second}.mp4"]
    assert shown(tmp_path / "some" / f"{second}.mp4")[1] == Fraction(23976, 1000)


def test_files_of_another_model_are_shown(
    latents: LocalStore, model: Path, network: VidTwin, tmp_path: Path, written: dict[str, list[np.ndarray]]
) -> None:
    """With and without a batch axis, joined and in parts, in half precision, normalised."""
    samples = list(stored(latents).values())[:3]
    structure, dynamics = (torch.cat(values) for values in zip(*samples, strict=True))
    described = read_dataset(latents).latents
    assert described is not None
    scaled = Normalization.of(described).apply(structure, dynamics)
    w, h = Latents(structure, dynamics).dynamics_w.contiguous(), Latents(structure, dynamics).dynamics_h.contiguous()
    files: dict[str, dict[str, Tensor]] = {
        "many": {"structure": structure, "dynamics": dynamics, "unasked": torch.zeros(1)},
        "one": {"structure": structure[1], "dynamics": dynamics[1]},
        "parts": {"structure": structure.half(), "dynamics_w": w.half(), "dynamics_h": h.half()},
        "scaled": dict(zip(("structure", "dynamics"), scaled, strict=True)),
    }
    for name, tensors in files.items():
        safetensors.torch.save_file(tensors, tmp_path / f"{name}.safetensors")
    words = ["--model", str(model), "--fps", "8", "--latents"]
    plain = [str(tmp_path / f"{name}.safetensors") for name in ("many", "one", "parts")]
    assert main([*words, *plain, "--output", str(tmp_path / "seen")]) == 0
    assert len(written) == 7
    for number, sample in enumerate(samples):
        for name in ("many", "parts"):
            assert is_seen(written[f"{name}-{number:05d}.mp4"], pixels(network, sample))
    assert is_seen(written["one.mp4"], pixels(network, samples[1]))
    back = [*words, str(tmp_path / "scaled.safetensors"), "--statistics", str(latents.root), "--limit", "2"]
    assert main([*back, "--output", str(tmp_path / "back")]) == 0
    assert sorted(file.name for file in (tmp_path / "back").iterdir()) == ["scaled-00000.mp4", "scaled-00001.mp4"]
    assert is_seen(written["scaled-00000.mp4"], pixels(network, samples[0]))


def test_what_the_words_cannot_mean_is_refused(
    latents: LocalStore, clips: LocalStore, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.mp4").write_bytes(b"precious")
    dataset = ["--latents", str(latents.root)]
    file = ["--latents", "made.safetensors"]
    for words, message in (
        ([*file, "--output", str(out)], "give --fps"),
        ([*file, "--output", str(out), "--fps", "inf"], "--fps inf must lie between 0.01 and 1000"),
        ([*file, "--output", str(out), "--fps", "1e-9"], "--fps 1e-09 must lie between 0.01 and 1000"),
        ([*file, "--output", str(out), "--fps", "8", "--key", "a"], "--key and --split choose samples of a dataset"),
        ([*file, "--output", str(out), "--fps", "8", "--split", "val"], "--key and --split choose samples"),
        ([*file, "--output", str(out), "--fps", "0"], "--fps: 0 must be a number above 0"),
        ([*dataset, "--output", str(out), "--statistics", "x"], "--statistics is for .safetensors files"),
        ([*dataset, "--output", str(out), "--key", "nobody"], "--key nobody: --latents"),
        ([*dataset, "--output", str(tmp_path / "full")], "exists and is not empty; choose another, or remove it"),
        ([*dataset, "--output", str(latents.root)], "is the same folder as --latents"),
        (["--latents", str(clips.root), "--output", str(out)], f"--latents {clips.root} is a dataset of clips; give"),
    ):
        assert main(["--model", str(model), *words]) == 2, words
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert not out.exists()
    assert (tmp_path / "full" / "a.mp4").read_bytes() == b"precious"


def test_two_files_of_one_name_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [tmp_path / part / "made.safetensors" for part in ("a", "b")]
    for place in places:
        place.parent.mkdir()
        tensors = {"structure": torch.zeros(3, 4, 2, 2), "dynamics": torch.zeros(2, 4, 4)}
        safetensors.torch.save_file(tensors, place)
    words = ["--model", str(model), "--fps", "8", "--output", str(tmp_path / "out"), "--latents", *map(str, places)]
    assert main(words) == 2
    assert f"{places[1]} and {places[0]} would both be the video made.mp4" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_second_dataset_that_cannot_be_decoded_is_refused_before_a_video_of_the_first(
    latents: LocalStore, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the folder would hold something, and the right command would be refused for that."""
    words = ["--model", str(model), "--output", str(tmp_path / "out"), "--limit", "1", "--latents", str(latents.root)]
    assert main([*words, str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none'}" in capsys.readouterr().err
    assert main([*words, f"{latents.root}/"]) == 2
    assert "would both be the video" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

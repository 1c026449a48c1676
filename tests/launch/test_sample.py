"""launch/sample.py: latents of a DiT, videos of them by their autoencoder, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from launch import decode_latents, sample
from model.dit import DiT
from model.dit_config import Conditioning, DiTConfig, LatentSpace
from tests.data_pipeline.cut.videos import decoded, numbered_video
from tests.tools.extras import NEEDS_DIFFUSERS
from trainer.latents.encoder import identify

pytestmark = NEEDS_DIFFUSERS


def save_dit(folder: Path, decoder: Path, autoencoder: str = "", condition: Conditioning = Conditioning.class_) -> Path:
    """A DiT with random weights for the latents of a decoder, or for those of another autoencoder."""
    identity = identify(decoder)
    space = LatentSpace(
        structure_shape=identity.config.structure_shape,
        dynamics_shape=identity.config.dynamics_shape,
        classes=("a", "b/c"),
        autoencoder=autoencoder or identity.weights,
    )
    torch.manual_seed(0)
    config = DiTConfig(
        width=24,
        depth=1,
        heads=2,
        structure_patch=(1, 1, 1),
        dynamics_patch=(1, 1),
        condition=condition,
    )
    DiT(config, space).save_pretrained(folder)
    return folder


def decode(model: Path, latents: Sequence[str], output: Path) -> int:
    """The status of launch/decode_latents.py on some samples."""
    places = ["--model", str(model), "--latents", *latents, "--output", str(output)]
    return decode_latents.main([*places, "--fps", "8", "--device", "cpu"])


def test_latents_and_videos_are_made_once_and_decode_latents_reads_them(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dit, output = save_dit(tmp_path / "dit", tiny_model_directory), tmp_path / "samples"
    words = ["--model", str(dit), "--output", str(output), "--steps", "2", "--device", "cpu"]
    videos = ["--decoder", str(tiny_model_directory), "--fps", "8"]
    assert sample.main([*words, "--classes", "b/c"]) == 0
    assert f"{output}: 1 new sample of 1" in capsys.readouterr().out
    assert sample.main([*words, *videos, "--count", "2"]) == 0
    said = capsys.readouterr().out
    assert f"{output}: 3 new samples of 4" in said
    assert f"{output}: 4 new videos" in said
    names = ["class0000-00000", "class0000-00001", "class0001-00000", "class0001-00001"]
    assert sorted(file.stem for file in output.glob("*.safetensors")) == names
    assert sorted(file.stem for file in output.glob("*.mp4")) == names
    assert sample.main([*words, *videos, "--count", "2"]) == 0
    assert "0 new samples of 4" in capsys.readouterr().out
    assert sample.main([*words, "--decoder", str(tiny_model_directory), "--fps", "9", "--count", "3"]) == 2
    assert "holds videos of other settings (fps: 8 -> 9)" in capsys.readouterr().err
    assert not (output / "class0000-00002.safetensors").exists(), "it was refused before its samples were made"
    latents = [str(output / f"{name}.safetensors") for name in names]
    assert decode(tiny_model_directory, latents, tmp_path / "seen") == 0
    for name in names:
        assert (tmp_path / "seen" / f"{name}.mp4").read_bytes() == (output / f"{name}.mp4").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "z"], "--classes: class 'z' is not one of the model's: a, b/c"),
        (["--steps", "7"], "--steps 7 does not divide the 1000 steps"),
        (["--decoder", "DECODER", "--fps", "8"], "--model makes latents of the model 1111"),
        (["--decoder", "nowhere", "--fps", "8"], "--decoder nowhere not found; name a directory with config.yaml"),
        (["--decoder", "DECODER"], "--decoder and --fps go together"),
        (["--count", "100001"], "--count 100001 is beyond 100000, because names of samples have five digits"),
        (["--guidance", "-1"], "-1 must be a finite number of at least 0"),
        (["--decoder", "DECODER", "--fps", "inf"], "--fps inf must lie between 0.01 and 1000"),
    ],
)
def test_refused_in_one_line_before_anything_is_written(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    dit, output = save_dit(tmp_path / "dit", tiny_model_directory, autoencoder="1" * 64), tmp_path / "samples"
    words = [str(tiny_model_directory) if word == "DECODER" else word for word in words]
    assert sample.main(["--model", str(dit), "--output", str(output), "--device", "cpu", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("launch/sample.py: ")
    assert message in line
    assert not output.exists()


def test_files_may_be_read_by_others_and_a_damaged_or_lost_account_of_them_is_named(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dit, output = save_dit(tmp_path / "dit", tiny_model_directory), tmp_path / "samples"
    words = ["--model", str(dit), "--output", str(output), "--steps", "2", "--device", "cpu", "--classes", "a"]
    assert sample.main(words) == 0
    (made,) = output.glob("*.safetensors")
    account = output / "sampling.json"
    assert made.stat().st_mode == account.stat().st_mode
    damaged = (("{", "is not a JSON file"), ("[]", "must be keys with values"), ("{}", "does not say how the samples"))
    for text, message in damaged:
        account.write_text(text)
        assert sample.main(words) == 2
        assert f"{account} {message}" in capsys.readouterr().err
    account.unlink()
    assert sample.main([*words, "--seed", "7"]) == 2
    assert "holds samples and no sampling.json" in capsys.readouterr().err
    assert not account.exists()


def test_numbers_that_are_not_finite_are_no_sample(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dit, output = save_dit(tmp_path / "dit", tiny_model_directory), tmp_path / "samples"
    broken = DiT.from_pretrained(dit, torch.device("cpu"))
    torch.nn.init.constant_(broken.last.structure.bias, torch.nan)
    broken.save_pretrained(dit)
    words = ["--model", str(dit), "--output", str(output), "--steps", "2", "--device", "cpu", "--classes", "a"]
    assert sample.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--model makes numbers that are not finite (the sample class0000-00000)" in line
    assert "or --guidance 5 is too strong for it" in line
    assert sample.main([*words, "--guidance", "1"]) == 2, "no sample exists, so that no setting is refused"
    assert "(the sample class0000-00000), so its training has failed; name weights" in capsys.readouterr().err
    assert not list(output.glob("*.safetensors"))


def test_a_model_without_a_condition_samples_without_guidance_and_refuses_it(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dit = save_dit(tmp_path / "dit", tiny_model_directory, condition=Conditioning.none)
    words = ["--model", str(dit), "--output", str(tmp_path / "samples"), "--steps", "2", "--device", "cpu"]
    assert sample.main([*words, "--guidance", "5"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--model is a DiT without a condition (dit.condition=none); leave --guidance away")
    assert not (tmp_path / "samples").exists()
    assert sample.main(words) == 0
    assert sample.main([*words, "--guidance", "1", "--count", "2"]) == 0, "the same setting, so the folder goes on"
    assert "1 new sample of 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "samples" / "sampling.json").read_text())["guidance"] == 1


def test_a_sample_says_whose_latents_it_holds_and_another_decoder_refuses_it(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both autoencoders have latents of the same shape, so that nothing else would tell them apart."""
    other, mine = "1" * 64, identify(tiny_model_directory).weights
    dit = save_dit(tmp_path / "dit", tiny_model_directory, autoencoder=other)
    words = ["--model", str(dit), "--output", str(tmp_path / "samples"), "--steps", "2", "--device", "cpu"]
    assert sample.main([*words, "--classes", "a"]) == 0
    assert json.loads((tmp_path / "samples" / "sampling.json").read_text())["autoencoder"] == other
    assert decode(tiny_model_directory, [str(tmp_path / "samples/class0000-00000.safetensors")], tmp_path / "seen") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"whose weights have the digest {other}, and those of --model have {mine}" in line
    assert not (tmp_path / "seen").exists()


def test_the_page_shows_all_of_the_folder_and_videos_that_are_not_whole_are_made_again(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dit, output = save_dit(tmp_path / "dit", tiny_model_directory), tmp_path / "samples"
    words = ["--model", str(dit), "--output", str(output), "--steps", "2", "--device", "cpu"]
    words += ["--decoder", str(tiny_model_directory), "--fps", "8", "--count", "2", "--classes"]
    for name in ("b/c", "a"):
        assert sample.main([*words, name]) == 0
    page = (output / "index.html").read_text()
    assert page.index("class0000-00000.mp4") < page.index("class0001-00000.mp4")
    assert "4 videos in 2 rows" in page
    whole = {file: file.read_bytes() for file in output.glob("*.mp4")}
    cut, empty, short, _ = sorted(whole)
    frames = len(decoded(short))
    cut.write_bytes(whole[cut][: len(whole[cut]) // 2])
    empty.write_bytes(b"")
    assert len(decoded(numbered_video(short, frames - 1))) == frames - 1, "a sound video, of a frame less"
    assert sample.main([*words, "a", "b/c"]) == 0
    assert f"{output}: 3 new videos; {output / 'index.html'} is the page of 4 videos" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in output.glob("*.mp4")} == whole
    latents = output / "class0000-00000.safetensors"
    latents.write_bytes(latents.read_bytes()[:-9])
    cut.unlink()
    assert sample.main([*words, "a"]) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"; remove {latents} and run launch/sample.py again")
    latents.unlink()
    latents.mkdir()
    assert sample.main([*words, "a"]) == 2
    assert f"{latents} is not a regular file; remove {latents} and run" in capsys.readouterr().err
    latents.rmdir()
    for name in ("index.html", "sampling.json", "videos.json"):
        file = output / name
        file.unlink()
        file.mkdir()
        assert sample.main([*words, "a"]) == 2
        assert f"--output {output}: {file} must be a file, and is a folder; remove it" in capsys.readouterr().err
        file.rmdir()
        file.touch()

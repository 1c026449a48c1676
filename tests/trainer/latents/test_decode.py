"""Latents back to pixels: those of `VidTwin.decode`, of datasets and of files, and what is refused."""

from __future__ import annotations

import re
import shutil
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
from tests.trainer.latents import corpus
from trainer.evaluation.pictures import VideoWriter
from trainer.latents import decode
from trainer.latents.decode import decode_batch, latents_of_file


@pytest.fixture(scope="module")
def network(model: Path) -> VidTwin:
    return VidTwin.from_pretrained(model)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dynamics": None},
            r"holds the tensors \['structure'\]; structure \[3, 4, 2, 2\] and dynamics \[2, f, 4\], or",
        ),
        ({"dynamics_w": (2, 4, 2), "dynamics_h": (2, 4, 2)}, r"holds the tensors .* are needed"),
        ({"structure": (3, 4, 2, 1)}, r"structure is \[3, 4, 2, 1\] of torch.float32; .*f = 2 to 4.* are needed"),
        ({"dynamics": (2, 5, 4)}, r"dynamics is \[2, 5, 4\] of"),
        ({"dynamics": (1, 2, 4, 4)}, r"dynamics is \[1, 2, 4, 4\] of"),
        ({"dynamics": ()}, r"dynamics is \[\] of"),
        ({"structure": torch.zeros(3, 4, 2, 2, dtype=torch.int32)}, r"structure is .* of torch.int32"),
    ],
)
def test_other_tensors_are_refused_with_those_that_are_expected(
    change: dict[str, object], message: str, network: VidTwin, tmp_path: Path
) -> None:
    shapes: dict[str, object] = {"structure": (3, 4, 2, 2), "dynamics": (2, 4, 4), **change}
    tensors = {name: torch.zeros(shape) if isinstance(shape, tuple) else shape for name, shape in shapes.items()}
    file = tmp_path / "made.safetensors"
    safetensors.torch.save_file({name: value for name, value in tensors.items() if value is not None}, file)  # type: ignore[misc]
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        list(latents_of_file(str(file), network.config, Fraction(8)))


def test_a_file_that_is_damaged_and_values_without_pixels_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(model), "--fps", "8", "--output", str(tmp_path / "out"), "--latents"]
    file = tmp_path / "made.safetensors"
    file.write_bytes(b"junk" * 9)
    assert main([*words, str(file)]) == 2
    assert f"{file} is not a complete safetensors file" in capsys.readouterr().err
    tensors = {"structure": torch.zeros(3, 4, 2, 2), "dynamics": torch.full((2, 4, 4), torch.nan)}
    safetensors.torch.save_file(tensors, file)
    assert main([*words, str(file)]) == 2
    assert f"{file}: dynamics has a value that is infinite or no number" in capsys.readouterr().err
    good = {"structure": torch.zeros(2, 3, 4, 2, 2), "dynamics": torch.zeros(2, 2, 4, 4)}
    safetensors.torch.save_file(good, tmp_path / "good.safetensors")
    good["structure"][1, 0, 0, 0, 0] = torch.inf
    safetensors.torch.save_file(good, file)
    assert main([*words, str(tmp_path / "good.safetensors"), str(file)]) == 2  # and the good ones are not begun
    assert f"{file} number 1: structure has a value that is infinite" in capsys.readouterr().err
    safetensors.torch.save_file({name: tensor[:0] for name, tensor in good.items()}, file)
    assert main([*words, str(file)]) == 2
    assert f"{file} holds the latents of no video" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "missing.safetensors")]) == 2
    assert "missing.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_values_that_fp32_or_the_decoder_cannot_hold_are_refused(network: VidTwin, tmp_path: Path) -> None:
    """1e300 is a number of fp64 alone, and the squares of 1e38 are none of fp32; no video is made of either."""
    file = tmp_path / "made.safetensors"
    dynamics = torch.zeros(1, 2, 4, 4)
    beyond = torch.full((1, 3, 4, 2, 2), 1e300, dtype=torch.float64)
    safetensors.torch.save_file({"structure": beyond, "dynamics": dynamics}, file)
    with pytest.raises(ValueError, match=rf"{file} number 0: structure has a value .* in fp32, which has no pixels"):
        list(latents_of_file(str(file), network.config, Fraction(8)))
    with pytest.raises(ValueError, match="structure has a value that is infinite or no number in fp32"):
        decode_batch(network, beyond, dynamics)
    with pytest.raises(ValueError, match=r"decoder gives pixels that are infinite .*: the latents reach 1e\+38"):
        decode_batch(network, torch.full((1, 3, 4, 2, 2), 1e38), dynamics)


def test_tensors_of_8_bits_are_decoded_and_types_that_torch_does_not_read_are_refused(
    network: VidTwin, tmp_path: Path
) -> None:
    """Every value of these types is one of fp32."""
    file = tmp_path / "made.safetensors"
    source = torch.Generator().manual_seed(0)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        structure = torch.randn(3, 4, 2, 2, generator=source).to(dtype)
        w, h = (torch.randn(2, 4, 2, generator=source).to(dtype) for _ in range(2))
        safetensors.torch.save_file({"structure": structure, "dynamics_w": w, "dynamics_h": h}, file)
        (found,) = latents_of_file(str(file), network.config, Fraction(8))
        assert torch.equal(found.structure, structure.float())
        assert torch.equal(found.dynamics, torch.cat([w.float(), h.float()], dim=-1))
        assert decode_batch(network, structure[None], found.dynamics[None].to(dtype)).shape == (1, 3, 4, 32, 32)
    safetensors.torch.save_file({"structure": torch.zeros(4, 4).to(torch.float8_e8m0fnu)}, file)
    with pytest.raises(ValueError, match=rf"{file} holds a tensor of the type 'F8_E8M0', which torch does not read"):
        list(latents_of_file(str(file), network.config, Fraction(8)))


def test_latents_of_another_model_are_refused_with_both_digests(
    latents: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = corpus.save_model(tmp_path / "other", seed=1)
    described = read_dataset(latents).latents
    assert described is not None
    words = ["--model", str(other), "--output", str(tmp_path / "out")]
    tensors = {"structure": torch.zeros(3, 4, 2, 2), "dynamics": torch.zeros(2, 4, 4)}
    safetensors.torch.save_file(tensors, tmp_path / "made.safetensors")
    file = ["--latents", str(tmp_path / "made.safetensors"), "--fps", "8"]
    for option, more in (("--latents", []), ("--statistics", file)):
        assert main([*words, *more, option, str(latents.root)]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"launch/decode_latents.py: {option} {latents.root} was encoded by the model whose")
        assert len(set(re.findall(r"[0-9a-f]{64}", error))) == 2
        assert described.weights in error
    assert not (tmp_path / "out").exists()


def test_a_damaged_sample_is_named_with_its_dataset_and_what_says_more(
    latents: LocalStore, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "latents"
    shutil.copytree(latents.root, damaged)
    shard = sorted((damaged / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:700] + b"?" + shard.read_bytes()[701:])
    assert main(["--model", str(model), "--latents", str(damaged), "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"launch/decode_latents.py: --latents {damaged}: ")
    assert f"launch/verify_shards.py --shards {damaged} says what else is damaged" in line


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
    assert "would both be" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")

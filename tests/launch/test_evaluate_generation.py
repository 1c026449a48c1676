"""launch/evaluate_generation.py: the report, the page, the same command again, and what is refused."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from launch import evaluate_generation
from model.efficientnet import installed
from tests.trainer.generation.toys import SETTINGS, Brightness, Colours, make_corpus, script, stored, write_samples
from tests.trainer.latents.corpus import build_clips, save_model
from trainer.evaluation import feature_networks

Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `shards`, `latents`, `i3d.pt`, `judge.pt`, and in `samples` training latents with a little noise."""
    folder = make_corpus(tmp_path_factory.mktemp("generation"))
    noise = torch.Generator().manual_seed(0)

    def near(latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: latents[name] + 1e-4 * torch.randn(latents[name].shape, generator=noise)
            for name in ("structure", "dynamics")
        }

    training = stored(folder / "latents", "train")
    write_samples(folder / "samples", [(label, near(latents)) for label, latents in training[:3] + training[-3:]])
    build_clips(folder / "other", (("phone", "carphone_pristine.mp4", "train"),))
    script(Colours(), folder / "i3d.pt")
    script(Brightness(), folder / "judge.pt")
    return folder


@pytest.fixture
def words(corpus: Path, tmp_path: Path) -> Words:
    """The words of a measurement; options may be given other values."""

    def make(*further: str, **changed: str | Path) -> list[str]:
        named = {name: corpus / name for name in ("samples", "shards", "latents")}
        options = named | {"decoder": corpus / "model", "output": tmp_path / "out"} | changed
        return [*(part for name, place in options.items() for part in (f"--{name}", str(place))), *further]

    return make


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """EfficientNet-Lite0 takes long, and has tests of its own."""
    monkeypatch.setattr(feature_networks, "installed", lambda: False)


def test_the_report_the_page_and_the_same_command_again(
    words: Words, corpus: Path, tmp_path: Path, without_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(
        *("--extractor", str(corpus / "i3d.pt"), "--classifier", str(corpus / "judge.pt"), "--paper"),
        *("--per-class", "3", "--show", "2", "--neighbours", "2", "--split", "train", "--device", "cpu"),
    )
    assert evaluate_generation.main(command) == 0
    said = capsys.readouterr().out
    assert "split train: 6 windows, 2 classes, 3 of each" in said
    assert "6 samples, 2 classes, 3 of each; seed 3, 50 steps, guidance 5.0, weights ffffffffffff" in said
    assert "classes    balanced" in said
    assert "6 samples lie as near to a training clip as the nearest 5 % of the held-out clips" in said
    assert "frechet_efficientnet_frames not computed: the weights of EfficientNet-Lite0 are not installed" in said
    assert "VidTwin 193; here " in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["protocol"]["generated"]["guidance"] == SETTINGS["guidance"]
    assert report["protocol"]["balanced"] is True
    assert set(report["metrics"]) == {"gfvd"}
    page = (tmp_path / "out" / "report.html").read_text()
    videos = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
    assert len(videos) == 2 * (1 + 2)
    (tmp_path / "shown.mp4").write_bytes(base64.b64decode(videos[0]))
    with av.open(str(tmp_path / "shown.mp4")) as opened:
        frames = [(frame.width, frame.height) for frame in opened.decode(video=0)]
    assert frames == [(32, 32)] * 4
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "features").iterdir()}
    assert evaluate_generation.main(command) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "features").iterdir()} == kept
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_samples_without_classes_are_compared_with_all_real_clips(
    words: Words, corpus: Path, tmp_path: Path, without_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    training = stored(corpus / "latents", "train")
    samples = write_samples(tmp_path / "free", [("", latents) for _, latents in training[:2]])
    options = ["--split", "train", "--show", "0", "--device", "cpu", "--extractor", str(corpus / "i3d.pt")]
    options += ["--few-clips"]
    assert evaluate_generation.main(words(*options, samples=samples)) == 0
    said = capsys.readouterr().out
    assert f"split train: {len(training)} windows" in said
    assert "classes    the samples have none" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["class_agreement"] == []
    assert set(report["metrics"]) == {"gfvd"}
    for words_of_classes in (["--per-class", "1"], ["--classifier", str(corpus / "judge.pt")]):
        assert evaluate_generation.main(words(*options, *words_of_classes, samples=samples)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"--samples {samples} has none" in line


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="pip install -e '.[generation]'")
def test_frames_and_their_differences_are_measured(words: Words, tmp_path: Path) -> None:
    assert evaluate_generation.main(words("--per-class", "2", "--show", "0")) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["metrics"]) == {"frechet_efficientnet_frames", "frechet_efficientnet_differences"}
    assert all(entry["dimensions"] == 1280 and entry["value"] > 0 for entry in report["metrics"].values())
    remark = "frechet_efficientnet_frames: 16 real frames for 1280 feature dimensions: the covariance is singular"
    assert any(found.startswith(remark) for found in report["remarks"])


@pytest.mark.parametrize(
    ("further", "changed", "message"),
    [
        ([], {"samples": "absent"}, "--samples absent is no folder; name one that launch/sample.py has written"),
        ([], {"samples": "shards"}, "shards holds no .safetensors; name a folder that launch/sample.py has written"),
        ([], {"shards": "latents"}, "py: --shards CORPUS/latents is a dataset of latents; give one of clips"),
        ([], {"latents": "shards"}, "py: --latents CORPUS/shards is a dataset of clips; give one of latents"),
        (
            [],
            {"latents": "absent"},
            "absent: no dataset.json there; give the folder that launch/encode_latents",
        ),
        ([], {"shards": "other/shards"}, "does not hold the clip bi-bunny-"),
        ([], {"decoder": "other-model"}, "was encoded by the model"),
        ([], {"decoder": "absent"}, "absent not found; name a directory with config.yaml and model.safetensors"),
        ([], {"output": "samples"}, "is the same folder as --samples"),
        (["--split", "test"], {}, "--split test: --latents has no sample of this split; its splits are train, val"),
        (["--per-class", "4"], {}, "has 3 of the class 'bi', fewer than --per-class 4; lower it"),
        (["--per-class", "0"], {}, "0 must be a whole number of at least 1"),
        (["--extractor", "absent.pt"], {}, "--extractor absent.pt is no file; it names i3d_torchscript"),
        (["--extractor", "NOISE"], {}, "is not a TorchScript file"),
        (["--classifier", "NOISE"], {}, "is not a TorchScript file"),
        (["--classifier", "I3D"], {}, "cannot be called as network(video)"),
        ([], {"samples": "unlabelled"}, "sample-00001.safetensors has no class, and other samples have one"),
        ([], {"samples": "other-class"}, "--split val has no clip of the class 'zz'"),
        ([], {"samples": "no-sample"}, "does not say its class; only files of launch/sample.py do"),
        ([], {"samples": "another-autoencoder"}, f"for the autoencoder whose weights have the digest {'1' * 64}, and"),
        (
            [],
            {"samples": "one-of-another"},
            "sample-00001.safetensors: made for the autoencoder whose weights have the",
        ),
        (
            [],
            {"samples": "no-settings"},
            "does not say how the samples were made: it has no weights; remove it and the",
        ),
        ([], {"samples": "unnamed"}, "sample-00000.safetensors does not say its class, its number and its autoencoder"),
        ([], {"samples": "cut"}, "cut/sample-00000.safetensors and run launch/sample.py again"),
        ([], {"samples": "other-shape"}, "structure is [3, 3, 2, 2]"),
        ([], {"samples": "too-large"}, "too-large/sample-00001.safetensors has values too large to be normalised"),
        (
            ["--extractor", "I3D"],
            {"samples": "too-large"},
            "sample-00001.safetensors: the decoder gives pixels that are",
        ),
        ([], {"samples": "not-finite"}, "structure has a value that is infinite or no number"),
    ],
)
def test_refused_in_one_line(
    words: Words,
    corpus: Path,
    tmp_path: Path,
    without_weights: None,
    capsys: pytest.CaptureFixture[str],
    further: list[str],
    changed: dict[str, str],
    message: str,
) -> None:
    prepare_wrong(corpus, tmp_path)
    known = {"I3D": str(corpus / "i3d.pt"), "NOISE": str(tmp_path / "noise.pt")}
    further = [known.get(word, word) for word in further]
    places: dict[str, str | Path] = {}
    for name, place in changed.items():
        here = [folder / place for folder in (corpus, tmp_path) if (folder / place).exists()]
        places[name] = here[0] if here else place
    assert evaluate_generation.main(words("--device", "cpu", *further, **places)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("launch/evaluate_generation.py: ")
    assert message.replace("CORPUS", str(corpus)) in line
    if changed.get("samples") in ("cut", "other-shape", "too-large", "not-finite"):
        assert re.search(r"; remove \S+/sample-0000\d\.safetensors and run launch/sample\.py again", line)
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("place", ["report.json", "report.html", "features/1.npz", "videos/sample-00000.mp4"])
def test_a_folder_where_a_file_will_be_written_is_refused_before_the_work(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    wrong = tmp_path / "out" / place
    wrong.mkdir(parents=True)
    assert evaluate_generation.main(words("--extractor", "absent.pt")) == 2
    assert f"{wrong} must be a file, and is a folder; remove it" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    if "/" in place:
        wrong.parents[1].mkdir()
        wrong.parent.write_text("")
        assert evaluate_generation.main(words("--extractor", "absent.pt")) == 2
        assert f"{wrong.parent} must be a folder, and is a file; remove it" in capsys.readouterr().err


def prepare_wrong(corpus: Path, folder: Path) -> None:
    """Samples that something is wrong with, another model, and a file that is no network."""
    training = stored(corpus / "latents", "train")
    good = {name: training[0][1][name] for name in ("structure", "dynamics")}
    write_samples(folder / "unlabelled", [("bi", good), ("", good)])
    write_samples(folder / "other-class", [("bi", good), ("zz", good)])
    write_samples(folder / "other-shape", [("bi", good | {"structure": good["structure"][:, :3]})])
    large = {name: values + 1e38 for name, values in good.items()}
    write_samples(folder / "too-large", [("bi", good), ("bi", large)])
    write_samples(folder / "not-finite", [("bi", good | {"structure": good["structure"] * float("nan")})])
    write_samples(folder / "no-sample", [("bi", good)])
    save_file({"structure": good["structure"].contiguous()}, folder / "no-sample" / "another.safetensors")
    write_samples(folder / "another-autoencoder", [("bi", good)], "1" * 64)
    mixed = write_samples(folder / "one-of-another", [("bi", good), ("bi", good)])
    shutil.copy(folder / "another-autoencoder" / "sample-00000.safetensors", mixed / "sample-00001.safetensors")
    (write_samples(folder / "no-settings", [("bi", good)]) / "sampling.json").write_text("{}")
    unnamed = write_samples(folder / "unnamed", [("bi", good)]) / "sample-00000.safetensors"
    save_file({name: values.contiguous() for name, values in good.items()}, unnamed, {"sample": '{"label": "bi"}'})
    cut = write_samples(folder / "cut", [("bi", good)]) / "sample-00000.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    (folder / "noise.pt").write_bytes(b"not a network")
    shutil.copytree(corpus / "model", folder / "other-model")
    save_model(folder / "other-model", seed=1)

"""Measures of generated clips with known values: equal sets, training clips as samples, judges of known verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.read.latent_dataset import LatentDataset
from data_pipeline.read.normalization import Normalization
from model.efficientnet import EfficientNetLite0
from model.vidtwin import VidTwin
from tests.data_pipeline.cut.videos import decoded
from tests.trainer.generation.toys import Brightness, Colours, script, stored, write_samples
from tests.trainer.latents.corpus import config_of, encode_here
from trainer.evaluation.catalogue import FeatureNetwork
from trainer.evaluation.feature_networks import FrameFeatures
from trainer.evaluation.frechet import VideoFeatures
from trainer.evaluation.run import load_model
from trainer.generation.agreement import agreement, chance_of_neighbours
from trainer.generation.features import CHUNK, features
from trainer.generation.measure import Measuring, decode_samples
from trainer.generation.memorisation import Training
from trainer.generation.networks import GFVD, Classifier
from trainer.generation.paper import paper_row
from trainer.generation.protocol import choose, describe
from trainer.generation.real_clips import RealClips
from trainer.generation.samples import read_samples, some_of_each
from trainer.generation.shown import shown
from trainer.sampling.generate import PROMPTS_KEY, SAMPLES

CPU = torch.device("cpu")


def opened(
    corpus: Path,
    samples: Path,
    cache: Path,
    networks: Sequence[FeatureNetwork] = (),
    *,
    latents: Path | None = None,
    split: str = "train",
    per_class: int | None = None,
    allow_few: bool = False,
) -> Measuring:
    """What is to be measured; `latents` may be others than those of the corpus."""
    encoded = str(latents or corpus / "latents")
    clips = RealClips(str(corpus / "shards"), encoded)
    return Measuring(
        chosen=choose(read_samples(samples), clips, split, per_class),
        clips=clips,
        training=Training(encoded),
        model=load_model(corpus / "model", CPU),
        decoder=clips.description.weights,
        networks=networks,
        cache=cache,
        neighbours=2,
        allow_few=allow_few,
        progress=lambda what: None,
    )


def measure(
    corpus: Path, samples: Path, cache: Path, networks: Sequence[FeatureNetwork], **choices: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The protocol and the results."""
    its = opened(corpus, samples, cache, networks, **choices)
    return describe(its.chosen, its.clips, networks, its.decoder), its.run()


def test_training_clips_as_samples_are_found_and_agree_with_their_classes(corpus: Path, tmp_path: Path) -> None:
    training = stored(corpus / "latents", "train")
    samples = write_samples(tmp_path / "samples", training)
    protocol, found = measure(corpus, samples, tmp_path / "cache", [])
    near = found["memorisation"]
    assert near["samples"] == {"count": len(training), "least": 0, "quantile_05": 0, "median": 0}
    assert near["as_near_as_05"] == len(training)
    for item in near["nearest"]:
        _, latents = training[int(item["sample"].removeprefix("sample-"))]
        assert item["training"][0] == latents["key"]
        assert item["distances"][0] == 0 < item["distances"][1]
    judged = found["class_agreement"][0]
    counts = {label: sum(label == other for other, _ in training) for label in ("bi", "ph")}
    assert judged["value"] == 1
    assert judged["confusion"] == {label: {label: count} for label, count in counts.items()}
    assert judged["chance"] == pytest.approx(sum((count / len(training)) ** 2 for count in counts.values()))
    assert protocol["real"]["per_class"] == protocol["generated"]["per_class"] == counts
    assert not protocol["balanced"]


def test_new_clips_lie_farther_away_than_training_clips(corpus: Path, tmp_path: Path) -> None:
    noise = torch.Generator().manual_seed(1)
    normalization = Normalization.of(LatentDataset(str(corpus / "latents")).description)
    made = []
    for label, latents in stored(corpus / "latents", "train")[:8]:
        shapes = (latents[name].shape for name in ("structure", "dynamics"))
        drawn = normalization.invert(*(torch.randn(shape, generator=noise) for shape in shapes))
        made.append((label, dict(zip(("structure", "dynamics"), drawn, strict=True))))
    _, found = measure(corpus, write_samples(tmp_path / "samples", made), tmp_path / "cache", [])
    assert found["memorisation"]["samples"]["least"] > 1, "two unrelated latents are about 4 apart"
    assert found["memorisation"]["as_near_as_05"] == 0


def test_training_clips_are_shown_as_they_were_encoded_mirrored_ones_too(corpus: Path, tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    words = ("windows.mirrored=true", "encode.batch=8")
    encode_here(config_of(corpus / "model", corpus / "shards", latents, *words))
    training = stored(latents, "train")
    samples = write_samples(tmp_path / "samples", training)
    measuring = opened(corpus, samples, tmp_path / "cache", latents=latents)
    nearest = [
        {"sample": f"sample-{number:05d}", "training": [training[number][1]["key"]], "distances": [0.0]}
        for number in range(2)
    ]
    rows = shown(measuring, {"memorisation": {"nearest": nearest}}, 2, tmp_path)
    plain, twin = (np.stack(decoded(row[1].mp4)).astype(np.float64) for row in rows)
    window = measuring.clips.windows("train")[0]
    assert rows[0][1].caption == f"bi {window.key}, distance 0"
    _, pixels = measuring.clips.read([window])
    expected = pixels[0].permute(1, 2, 3, 0).numpy().astype(np.float64)
    for found, wanted in ((plain, expected), (twin, expected[:, :, ::-1])):
        assert np.abs(found - wanted).mean() < 8, "of 255; H.264 loses a little"
    assert np.abs(plain - twin).mean() > 8


def test_a_training_clip_that_is_no_longer_in_the_shards_is_named_and_the_others_are_shown(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which clips are the nearest is known only at the end, so one that has gone must not cost the report."""
    measuring = opened(corpus, write_samples(tmp_path / "samples", stored(corpus / "latents", "val")), tmp_path)
    clips, sample = measuring.clips, measuring.chosen.samples.items[0].name
    first, *_, last = windows = clips.windows("train")
    assert first.clip != last.clip
    clips._rows.clear()
    changed = [replace(window, crc32=window.crc32 ^ (window.clip == first.clip)) for window in windows]
    monkeypatch.setattr(clips, "windows", lambda split, **_: changed)
    nearest = [{"sample": sample, "training": [first.key, last.key], "distances": [0.0, 1.0]}]
    (row,) = shown(measuring, {"memorisation": {"nearest": nearest}}, 1, tmp_path)
    assert [clip.caption.split()[-2:] for clip in row[1:]] == [["distance", "1"]]
    assert clips.failed == {first.key: f"--shards does not hold its clip {first.clip}"}


def test_damaged_training_latents_are_named_with_their_dataset_and_what_says_more(corpus: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "latents"
    shutil.copytree(corpus / "latents", damaged)
    shard = sorted((damaged / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:700] + b"?" + shard.read_bytes()[701:])
    samples = write_samples(tmp_path / "samples", stored(corpus / "latents", "train")[:1])
    measuring = opened(corpus, samples, tmp_path / "cache", latents=damaged)
    with pytest.raises(
        ValueError, match=rf"^--latents {damaged}: .*; launch/verify_shards\.py --shards {damaged} says what else"
    ):
        measuring.run()


def test_gfvd_is_the_distance_of_the_decoded_pixels_to_the_real_ones(corpus: Path, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", stored(corpus / "latents", "train"))
    extractor = VideoFeatures(script(Colours(), tmp_path / "i3d.pt"), CPU, "--extractor ", name=GFVD)
    protocol, found = measure(corpus, samples, tmp_path / "cache", [extractor], per_class=6)
    assert protocol["balanced"]
    assert protocol["real"]["per_class"] == protocol["generated"]["per_class"] == {"bi": 6, "ph": 6}
    clips = RealClips(str(corpus / "shards"), str(corpus / "latents"))
    chosen = choose(read_samples(samples), clips, "train", 6)
    made = decode_samples(load_model(corpus / "model", CPU), chosen.samples.items)
    colours = [255 * video.double().mean(dim=(2, 3, 4)).numpy() for video in (clips.read(chosen.real)[1] / 255, made)]
    means, covariances = [rows.mean(0) for rows in colours], [np.cov(rows, rowvar=False) for rows in colours]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * roots
    assert found["metrics"]["gfvd"]["value"] == pytest.approx(expected, rel=1e-3)
    assert found["remarks"] == [], "12 clips are enough for 3 dimensions"
    assert "frechet_efficientnet_frames" in found["not_computed"]


def test_gfvd_of_too_few_clips_is_refused_unless_it_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    samples = write_samples(tmp_path / "samples", stored(corpus / "latents", "train")[:3])
    extractor = VideoFeatures(script(Colours(), tmp_path / "i3d.pt"), CPU, "--extractor ", name=GFVD)
    _, found = measure(corpus, samples, tmp_path / "cache", [extractor])
    assert GFVD not in found["metrics"]
    assert found["not_computed"][GFVD].startswith("3 generated clips for 3 feature dimensions")
    assert "--few-clips" in found["not_computed"][GFVD]
    _, found = measure(corpus, samples, tmp_path / "cache", [extractor], allow_few=True)
    assert found["metrics"][GFVD]["value"] > 0
    assert found["remarks"][0].startswith("gfvd: 3 generated clips for 3 feature dimensions")


def test_equal_sets_have_distance_0(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = write_samples(tmp_path / "samples", stored(corpus / "latents", "train"))
    clips = RealClips(str(corpus / "shards"), str(corpus / "latents"))
    windows = clips.windows("train")
    clips.find(windows)

    def pixels(model: VidTwin, items: Sequence[Any]) -> torch.Tensor:
        numbers = [int(item.name.removeprefix("sample-")) for item in items]
        return clips.read([windows[number] for number in numbers])[1].float() / 255

    monkeypatch.setattr("trainer.generation.measure.decode_samples", pixels)
    networks: list[FeatureNetwork] = [
        VideoFeatures(script(Colours(), tmp_path / "i3d.pt"), CPU, "--extractor ", name=GFVD),
        Classifier(script(Brightness(), tmp_path / "judge.pt"), 2, CPU),
    ]
    _, found = measure(corpus, samples, tmp_path / "cache", networks)
    assert found["metrics"]["gfvd"]["value"] == pytest.approx(0, abs=1e-6)
    light = clips.read(windows)[1].float().mean(dim=(1, 2, 3, 4)) / 255
    right = sum((window.label == "ph") == (value > 0.5).item() for window, value in zip(windows, light, strict=True))
    judged = [entry for entry in found["class_agreement"] if entry["judge"] == "--classifier"]
    assert [entry["value"] for entry in judged] == [right / len(windows)] * 2
    assert {entry["chance"] for entry in judged} == {0.5}


class MeanColours(EfficientNetLite0):
    """Its features of a frame are its mean colours."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.mean(dim=(2, 3))


def test_frames_and_differences_of_neighbours_are_looked_at_clip_by_clip() -> None:
    video = torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    colours = video.mean(dim=(3, 4)).transpose(1, 2).numpy()
    for differences, expected in ((False, colours), (True, (np.diff(colours, axis=1) + 1) / 2)):
        found = FrameFeatures(MeanColours(), differences, CPU)(video)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        with pytest.raises(ValueError, match="the clips have pixels that are infinite or no number"):
            FrameFeatures(MeanColours(), differences, CPU)(video * float("nan"))


def test_features_are_computed_once(tmp_path: Path) -> None:
    asked: list[range] = []
    video = torch.rand(CHUNK + 3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def read(numbers: range) -> tuple[list[int], torch.Tensor]:
        asked.append(numbers)
        kept = [place for place, number in enumerate(numbers) if number != CHUNK]  # this one cannot be read
        return kept, video[[numbers[place] for place in kept]]

    extractor = VideoFeatures(script(Colours(), tmp_path / "i3d.pt"), CPU, "--extractor ", name=GFVD)
    names = [str(number) for number in range(len(video))]
    for _ in range(2):
        found = list(features([extractor], names, read, tmp_path / "cache"))
        assert [number for some in found for number in some.numbers] == [n for n in range(len(video)) if n != CHUNK]
        values = np.concatenate([some.by_network["gfvd"][:, 0] for some in found])
        expected = 255 * video.mean(dim=(2, 3, 4)).numpy()
        np.testing.assert_allclose(values, np.delete(expected, CHUNK, 0), rtol=1e-5)
    assert asked == [range(CHUNK), range(CHUNK, CHUNK + 3), range(CHUNK, CHUNK + 3)], "what is whole is kept"
    file = next((tmp_path / "cache").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    list(features([extractor], names, read, tmp_path / "cache"))
    assert asked[3:] == [range(CHUNK), range(CHUNK, CHUNK + 3)], "a damaged file is computed again"
    np.savez(file, values=np.zeros((2, 1, 3), np.float32))
    found = list(features([extractor], names, read, tmp_path / "cache"))
    assert len(found[0].by_network["gfvd"]) == CHUNK, "and so is one of other clips"


def test_an_extractor_that_fails_on_more_clips_leaves_what_was_computed_before(tmp_path: Path) -> None:
    class FewClips(torch.nn.Module):
        def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
            if len(video) > 3:
                raise RuntimeError("too many")
            return video.mean(dim=[2, 3, 4])

    video, asked = torch.rand(CHUNK, 3, 4, 8, 8), []

    def read(numbers: range) -> tuple[list[int], torch.Tensor]:
        asked.append(len(numbers))
        return list(range(len(numbers))), video[: len(numbers)]

    extractor = VideoFeatures(script(FewClips(), tmp_path / "few.pt"), CPU, "--extractor ", name=GFVD)
    cache = tmp_path / "cache"
    names = [str(number) for number in range(CHUNK)]
    list(features([extractor], names[:3], read, cache))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"on {CHUNK} clips together: .*other clips is kept in {cache}$"):
            list(features([extractor], names, read, cache))
    list(features([extractor], names[:3], read, cache))
    assert asked == [3, CHUNK, CHUNK], "the three clips were not computed again"


def test_a_decoder_without_memory_is_helped_by_a_larger_machine(tmp_path: Path) -> None:
    def read(chunk: range) -> tuple[list[int], torch.Tensor]:
        raise MemoryError("the decoder could not allocate memory")

    extractor = VideoFeatures(script(Colours(), tmp_path / "i3d.pt"), CPU, "--extractor ", name=GFVD)
    said = (
        rf"^a chunk of {CHUNK} clips needs more memory .*the decoder .*; name another --device, or a machine with more"
    )
    with pytest.raises(ValueError, match=said):
        list(features([extractor], ["a"], read, tmp_path / "cache"))


def test_agreement_counts_and_chance() -> None:
    found = agreement(["a", "a", "b", "c"], ["a", "b", "b", "b"], 0.25, "judge")
    assert found["value"] == 0.5
    assert found["confusion"] == {"a": {"a": 1, "b": 1}, "b": {"b": 1}, "c": {"b": 1}}
    assert chance_of_neighbours(["a", "b", "z"], {"a": 3, "b": 1}) == pytest.approx((0.75 + 0.25 + 0) / 3)


def test_samples_of_prompts_have_no_classes(corpus: Path, tmp_path: Path) -> None:
    """They are compared with all real clips."""
    training = stored(corpus / "latents", "train")
    folder = write_samples(tmp_path / "samples", [("a cat", training[0][1]), ("two men", training[1][1])])
    settings = json.loads((folder / SAMPLES.name).read_text())
    (folder / SAMPLES.name).write_text(json.dumps(settings | {PROMPTS_KEY: {"prompt-1": "a cat"}}))
    samples = read_samples(folder)
    assert samples.classes == []
    clips = RealClips(str(corpus / "shards"), str(corpus / "latents"))
    assert len(choose(samples, clips, "train", None).real) == len(training)


def test_numbers_of_an_extractor_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Broken(torch.nn.Module):
        def forward(self, video: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
            return video.mean((2, 3, 4)) * float("nan")

    file = script(Broken(), tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=r"--extractor .*broken\.pt gives numbers that are not finite"):
        VideoFeatures(file, CPU, "--extractor ", name=GFVD)(torch.rand(2, 3, 4, 16, 16))


def test_some_of_each_class_are_spread_evenly() -> None:
    labelled = [("a", 0), ("b", 1), ("a", 2), ("a", 3), ("b", 4), ("a", 5)]
    assert some_of_each(labelled, 2, "here") == [0, 1, 3, 4]
    with pytest.raises(ValueError, match=r"here has 2 of the class 'b', fewer than --per-class 3; lower it"):
        some_of_each(labelled, 3, "here")


def test_the_paper_stands_beside_with_what_differs() -> None:
    protocol = {
        "real": {"shards": "ucf", "per_class": {str(number): 1 for number in range(101)}},
        "generated": {"guidance": 5.0, "steps": 25},
        "frames": 16,
        "image_size": 224,
    }
    row = paper_row(protocol)
    assert row["gfvd"]["VidTwin"] == 193
    assert row["differences"][1:-1] == ["steps of the sampler: paper 50, here 25"]

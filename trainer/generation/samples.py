"""The samples of a folder that `launch/sample.py` wrote: their files, their classes and how they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.store.files import file_sha256
from trainer.latents.named_latents import TENSOR_FILE
from trainer.latents.sample_metadata import read_sample_metadata
from trainer.sampling.generate import PROMPTS_KEY, SAMPLES, Sampling

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generated clip.

    Attributes:
        name: of its file, without the ending.
        label: its class; empty without classes, also where it was made of a prompt.
        autoencoder: digest of the weights of the one whose latents it holds; empty where that is not known.
        file: its latents.
    """

    name: str
    label: str
    autoencoder: str
    file: Path

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return file_sha256(self.file)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """All samples of a folder, in the order of their names, and `sampling.json`."""

    folder: Path
    settings: Mapping[str, Any]
    items: Sequence[Sample]

    @property
    def classes(self) -> list[str]:
        """The classes in the order of their letters; none for samples without classes."""
        return sorted({item.label for item in self.items if item.label})

    def balanced(self, per_class: int) -> Samples:
        """`per_class` samples of each class; raises ValueError where a class has fewer."""
        chosen = some_of_each([(item.label, item) for item in self.items], per_class, f"--samples {self.folder}")
        return replace(self, items=chosen)


def some_of_each(labelled: Sequence[tuple[str, T]], per_class: int, named: str) -> list[T]:
    """`per_class` items of each label, spread evenly over those of the label, in their order.

    Args:
        labelled: label and item.
        named: the place, for messages.
    Raises:
        ValueError: a label has fewer items.
    """
    places: dict[str, list[int]] = {}
    for place, (label, _) in enumerate(labelled):
        places.setdefault(label, []).append(place)
    chosen: list[int] = []
    for label, found in sorted(places.items()):
        if len(found) < per_class:
            raise ValueError(
                f"{named} has {len(found)} of the class {label!r}, fewer than --per-class {per_class}; lower it"
            )
        chosen += [found[number * len(found) // per_class] for number in range(per_class)]
    return [labelled[place][1] for place in sorted(chosen)]


def read_samples(folder: Path) -> Samples:
    """Read what the folder says of itself; the latents stay on the disk.

    Raises:
        ValueError: it is no folder of samples, or some samples have a class and others have none.
    """
    if not folder.is_dir():
        raise ValueError(f"--samples {folder} is no folder; name one that launch/sample.py has written")
    files = SAMPLES.files(folder)
    if not (folder / SAMPLES.name).is_file() or not files:
        missing = SAMPLES.name if files else TENSOR_FILE
        raise ValueError(f"--samples {folder} holds no {missing}; name a folder that launch/sample.py has written")
    settings = SAMPLES.read(folder, [key.name for key in fields(Sampling)])
    prompted = bool(settings.get(PROMPTS_KEY))
    items: list[Sample] = []
    for file in files:
        found = read_sample_metadata(file)
        label = "" if prompted else found.label
        items.append(
            Sample(name=file.name.removesuffix(TENSOR_FILE), label=label, autoencoder=found.autoencoder, file=file)
        )
    without = next((item.name for item in items if not item.label), None)
    if without is not None and any(item.label for item in items):
        raise ValueError(
            f"--samples {folder}: {without}{TENSOR_FILE} has no class, and other samples have one; measure them apart"
        )
    return Samples(folder=folder, settings=settings, items=items)


def refuse_another_autoencoder(samples: Samples, digest: str, named: str) -> None:
    """Refuse samples whose latents are not those of an autoencoder; a DiT that does not say whose it makes is believed.

    Args:
        digest: of the weights of the autoencoder.
        named: the option and the place of the autoencoder, for messages.
    Raises:
        ValueError: with both digests.
    """
    places = [(str(samples.folder), samples.settings["autoencoder"])]
    places += [(str(item.file), item.autoencoder) for item in samples.items]
    for place, made_for in places:
        if made_for and made_for != digest:
            raise ValueError(
                f"--samples {place}: made for the autoencoder whose weights have the digest {made_for}, and those of "
                f"{named} have {digest}; name the autoencoder and the latents that the samples were made for"
            )

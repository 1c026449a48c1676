"""The samples of a folder that `launch/sample.py` wrote: their files, their classes and how they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import safetensors

from data_pipeline.outside.documents import parse_json, read_json
from data_pipeline.outside.regular import check_regular
from data_pipeline.store.files import file_sha256
from trainer.latents.decode import TENSOR_FILE
from trainer.sampling.generate import METADATA_KEY, SETTINGS_FILE
from trainer.sampling.prompts import PROMPTS_KEY

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generated clip.

    Attributes:
        name: of its file, without the ending.
        label: its class; empty without classes, also where it was made of a prompt.
        file: its latents.
    """

    name: str
    label: str
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
        """In the order of their letters; none for samples without classes."""
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
    files = sorted(folder.glob(f"*{TENSOR_FILE}"))
    if not (folder / SETTINGS_FILE).is_file() or not files:
        missing = SETTINGS_FILE if files else TENSOR_FILE
        raise ValueError(f"--samples {folder} holds no {missing}; name a folder that launch/sample.py has written")
    try:
        settings = read_json(folder / SETTINGS_FILE)
    except ValueError as error:
        raise ValueError(f"{folder / SETTINGS_FILE} is not a JSON file in UTF-8: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{folder / SETTINGS_FILE} must be keys with values; make the samples again")
    prompted = bool(settings.get(PROMPTS_KEY))
    items = [
        Sample(name=file.name.removesuffix(TENSOR_FILE), label="" if prompted else _label(file), file=file)
        for file in files
    ]
    without = next((item.name for item in items if not item.label), None)
    if without is not None and any(item.label for item in items):
        raise ValueError(
            f"--samples {folder}: {without}{TENSOR_FILE} has no class, and other samples have one; measure them apart"
        )
    return Samples(folder=folder, settings=settings, items=items)


def _label(file: Path) -> str:
    try:
        check_regular(file)
        with safetensors.safe_open(file, framework="pt") as opened:
            found = parse_json((opened.metadata() or {})[METADATA_KEY])
        return str(found["label"])
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}); make the sample again") from error
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{file} does not say its class; only files of launch/sample.py do") from error

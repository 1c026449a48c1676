"""Where the weights of a model directory come from: the run, its step, its settings, its data and its program.

`model.safetensors` carries the provenance in its metadata, so weights that are copied without the other files keep it;
`provenance.json` beside it holds the same for people. A model that no training wrote (a translated checkpoint, a model
with random weights) has none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from data_pipeline.outside.documents import parse_json
from data_pipeline.outside.regular import check_regular

PROVENANCE_FILE = "provenance.json"
METADATA_KEY = "provenance"
"""The one key of the metadata: safetensors writes several keys in an order of chance, so the bytes would differ."""
FORMAT = 1


class Weights(Enum):
    """Which weights of the generator a model has."""

    ema = "ema"  # their moving average
    raw = "raw"  # the fp32 masters themselves


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where weights come from.

    Attributes:
        step: steps of the run that made them.
        weights: the weights themselves or their moving average.
        settings: every setting of the run at that step, by its dotted key.
        data: what tells the run's data and their order from others, by the name of the property.
        program: SHA-256 over the program's files; empty where the checkpoint does not know it.
        forked_from: the run and the step from which the run was forked; None where it began by itself.
    """

    step: int
    weights: Weights
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    program: str
    forked_from: Mapping[str, Any] | None = None

    def describe(self) -> str:
        """Which weights, of which step: part of a line."""
        return f"{self.weights.value} weights of step {self.step}"

    def to_json(self) -> dict[str, Any]:
        """What `provenance.json` holds."""
        return {"format": FORMAT} | asdict(self) | {"weights": self.weights.value}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Provenance:
        """Undo `to_json`.

        Raises:
            ValueError: the document is no provenance of this format.
        """
        try:
            fields = {key: value for key, value in document.items() if key != "format"}
            if document["format"] != FORMAT:
                raise ValueError(f"its format is {document['format']}, and this program reads format {FORMAT}")
            found = Provenance(**fields | {"weights": Weights(fields["weights"])})
            _check_types(found)
            return found
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it has no field {error}" if isinstance(error, KeyError) else str(error)) from error


def _check_types(found: Provenance) -> None:
    """Refuse values of other types than a training writes. Raises: ValueError, naming the field."""
    for name, kind, words in (
        ("step", int, "a whole number"),
        ("program", str, "a text"),
        ("settings", dict, "keys with values"),
        ("data", dict, "keys with values"),
        ("forked_from", dict | None, "keys with values"),
    ):
        value = getattr(found, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"its {name} is {value!r:.40} and must be {words}")


def metadata_of(provenance: Provenance | None) -> dict[str, str] | None:
    """The metadata of a safetensors file."""
    return None if provenance is None else {METADATA_KEY: json.dumps(provenance.to_json())}


def write_provenance(directory: Path, provenance: Provenance) -> None:
    """Write `provenance.json` into a model directory."""
    (directory / PROVENANCE_FILE).write_text(json.dumps(provenance.to_json(), indent=1) + "\n", "utf-8")


def read_provenance(weights: Path) -> Provenance | None:
    """The provenance in the metadata of a safetensors file; None where the file has none.

    Raises:
        ValueError: the file is damaged, or holds a provenance of another format; the message names it.
    """
    check_regular(weights)
    try:
        with safe_open(weights, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        return None if text is None else Provenance.from_json(parse_json(text))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{weights}: the provenance in its metadata cannot be read ({error})") from error

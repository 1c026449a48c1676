"""What the file of a sample says beside its latents: its class or prompt, its number, and whose latents they are.

It stands in the metadata of the .safetensors file, as JSON under the key `sample`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_pipeline.outside.documents import parse_json
from data_pipeline.outside.regular import NotRegular, check_regular

METADATA_KEY = "sample"
_LENGTH = 8
"""Bytes of a .safetensors file that say how long its header is; the header, which is JSON, stands behind them."""


@dataclass(frozen=True, kw_only=True)
class SampleMetadata:
    """What the metadata say of one sample.

    Attributes:
        label: its class, or its prompt; empty without a condition.
        number: among the samples of its class or prompt.
        autoencoder: digest of the weights of the autoencoder whose latents it holds; empty where the DiT that made it
            does not say.
    """

    label: str
    number: int
    autoencoder: str

    def to_metadata(self) -> dict[str, str]:
        """The metadata of the file."""
        return {METADATA_KEY: json.dumps(asdict(self))}


def read_sample_metadata(file: Path) -> SampleMetadata:
    """What a file says; the latents in it are not read.

    Raises:
        ValueError: it is damaged, or no file of `launch/sample.py`; the message names the file and the remedy.
        OSError: it cannot be read.
    """
    check_made(file)
    try:
        with safe_open(file, "pt") as opened:
            found = _parsed(opened.metadata() or {})
    except SafetensorError as error:
        raise ValueError(made_again(f"{file} is not a complete safetensors file ({error})", file)) from error
    except ValueError as error:
        raise ValueError(made_again(f"{file} {error}", file)) from error
    if found is None:
        raise ValueError(
            f"{file} does not say its class; only files of launch/sample.py do, so move it out of the folder"
        )
    return found


def refuse_sample_of_another(data: bytes, weights: str, place: str) -> None:
    """Refuse a sample of other latents than those that a model decodes; files that are no samples do not say it.

    Args:
        data: of a whole .safetensors file, which safetensors can read.
        weights: digest of the weights of the model.
        place: of the file, for messages.
    Raises:
        ValueError: with both digests.
    """
    header = parse_json(data[_LENGTH : _LENGTH + int.from_bytes(data[:_LENGTH], "little")])
    try:
        found = _parsed(header.get("__metadata__", {}))
    except ValueError as error:
        raise ValueError(f"--latents {place} {error}; make the sample again with launch/sample.py") from error
    if found is not None and found.autoencoder and found.autoencoder != weights:
        raise ValueError(
            f"--latents {place} is a sample for the autoencoder whose weights have the digest {found.autoencoder}, "
            f"and those of --model have {weights}; name the model that it was made for"
        )


def check_made(file: Path) -> None:
    """Refuse a folder, FIFO or device in the place of a file that launch/sample.py makes.

    Raises:
        ValueError: naming the file and the remedy.
        OSError: there is nothing.
    """
    try:
        check_regular(file)
    except (IsADirectoryError, NotRegular) as error:
        raise ValueError(made_again(f"{file} is not a regular file", file)) from error


def made_again(problem: str, file: Path) -> str:
    """A problem of one sample with its remedy, as a message."""
    return f"{problem}; remove {file} and run launch/sample.py again"


def _parsed(metadata: dict[str, str]) -> SampleMetadata | None:
    if METADATA_KEY not in metadata:
        return None
    types = {"label": str, "number": int, "autoencoder": str}
    try:
        found = parse_json(metadata[METADATA_KEY])
    except ValueError as error:
        raise ValueError(f"has metadata that cannot be read ({error})") from error
    if not isinstance(found, dict) or {key: type(value) for key, value in found.items()} != types:
        raise ValueError("does not say its class, its number and its autoencoder, and nothing else")
    return SampleMetadata(**found)

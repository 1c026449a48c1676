"""The files of a text encoder's directory, looked at before transformers opens them by their names.

The directory may come from anybody. Transformers waits at a FIFO, follows an index to any file, fetches code from the
network for some keys of a configuration, and checks few of its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors

from data_pipeline.outside.documents import parse_json, read_json_object
from data_pipeline.outside.regular import check_regular, read_regular

_INDEX = "model.safetensors.index.json"
"""Says in which file each tensor lies, where the weights are several files."""
MOST_BYTES = 2**28
"""Bytes of a file of a tokenizer. That of a vocabulary of a million tokens has 100 MB."""
_MOST_NUMBER = 2**31
"""The largest whole number in a configuration."""
_NOT_READ = ("quantization_config", "_attn_implementation", "attn_implementation")
"""Keys of a configuration that ask for other libraries or for code, some of it from the network."""
FAULTS = (OSError, ValueError, LookupError, ImportError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What transformers raises for a directory that it cannot use; it checks little by itself."""


def check_files(folder: Path, weights: Sequence[Path], named: str) -> None:
    """Look at all files that transformers may open by their names.

    Raises:
        ValueError: one is no regular file, no JSON that can be read, or an index that leads elsewhere.
    """
    try:
        for file in sorted(folder.iterdir()):
            if file.is_dir():
                continue
            check_regular(file)
            if file.suffix == ".json":
                _check_json(file)
        if (folder / _INDEX).exists():
            places = read_json_object(folder / _INDEX).get("weight_map")
            names = {file.name for file in weights}
            if not isinstance(places, dict) or not all(isinstance(at, str) and at in names for at in places.values()):
                raise ValueError(f"{_INDEX} names files that are no *.safetensors of this folder")
    except OSError as error:
        raise ValueError(f"{named}{folder}: {error.filename} {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{named}{folder}: {error}") from error


def _check_json(file: Path) -> None:
    try:
        parse_json(read_regular(file, MOST_BYTES))
    except ValueError as error:
        raise ValueError(f"its {file.name} cannot be read: {error}") from error


def check_config(config: dict[str, Any], layers: int) -> None:
    """Refuse a configuration that asks for code, or for more than a machine can build.

    Args:
        config: the content of config.json.
        layers: more than these no encoder of these weights can have.
    Raises:
        ValueError: naming the key.
    """
    for key, value in config.items():
        if key in _NOT_READ and value is not None:
            raise ValueError(f"{key} asks for more than transformers and its own code; take it out")
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MOST_NUMBER:
            raise ValueError(f"{key}={value} is more than {_MOST_NUMBER}, which no machine can build; correct it")
        if isinstance(value, int) and key.endswith("layers") and value > layers:
            raise ValueError(f"{key}={value} is more than the {layers} tensors that the weights hold; correct it")


def tensors_in(folder: Path) -> int:
    """How many tensors the files of weights hold."""
    count = 0
    for file in folder.glob("*.safetensors"):
        check_regular(file)
        with safetensors.safe_open(str(file), framework="pt") as opened:
            count += len(opened.keys())
    return count

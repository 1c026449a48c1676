"""Mean and standard deviation of the latents by channel, which a diffusion model needs to scale them.

A file of them is JSON: `{"structure": {"mean": [...], "std": [...]}, "dynamics": {"mean": [...], "std": [...]}}`, each
list with a number for each channel (d_S and d_D). The `dataset.json` of a dataset of latents is such a file as well:
its `latents.statistics` have `mean` and `deviation` of structure, dynamics_w and dynamics_h.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_pipeline.outside.documents import MOST_JSON, parse_json
from data_pipeline.outside.regular import read_regular
from model.fetch import fetch
from model.network import VidTwinNetwork
from model.weights import weights_digest

DATASET_FILE = "dataset.json"

_LARGEST = sys.float_info.max
"""Whole numbers of JSON may be larger, and neither is infinity a finite number."""
REMEDY = 'it must be {"structure": {"mean": [...], "std": [...]}, "dynamics": {"mean": [...], "std": [...]}}'


@dataclass(frozen=True)
class LatentStatistics:
    """Means and standard deviations: of the structure's d_S channels first, then of the dynamics' d_D channels."""

    mean: list[float]
    std: list[float]


def read_statistics(place: str | Path, network: VidTwinNetwork) -> LatentStatistics:
    """Read a file of statistics.

    Args:
        place: the file, or a folder whose `dataset.json` it is; or the s3:// address of either, where that of a file
            ends in `.json`.
        network: the model whose latents they are.
    Raises:
        ValueError: the file holds something else, numbers for another number of channels, or those of another model's
            latents; the message names the key, or both digests.
        OSError: the file cannot be read.
    """
    file = str(place)
    if not file.endswith(".json") and ("://" in file or Path(file).is_dir()):
        file += DATASET_FILE if file.endswith("/") else f"/{DATASET_FILE}"
    data = _read(file)
    try:
        document = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON in UTF-8 ({error}); {REMEDY}") from error
    if isinstance(document, dict) and "latents" in document:
        _refuse_another_model(document["latents"], network, file)
        document = _of_dataset(document["latents"], file)
    config = network.config
    channels = {"structure": config.structure.channels, "dynamics": config.dynamics.channels}
    if not isinstance(document, dict) or document.keys() != channels.keys():
        raise ValueError(f"{file} does not have the keys structure and dynamics; {REMEDY}")
    mean: list[float] = []
    std: list[float] = []
    for kind, count in channels.items():
        mean += _numbers(document, kind, "mean", count, file)
        std += _numbers(document, kind, "std", count, file)
    return LatentStatistics(mean, std)


def _read(file: str) -> bytes:
    """The bytes of a file, or of an object of an S3 store. Raises: as `read_statistics`."""
    if "://" not in file:
        return read_regular(file, MOST_JSON)
    folder, _, name = file.rpartition("/")
    with TemporaryDirectory() as temporary:
        fetch(folder, (name,), Path(temporary))
        return read_regular(Path(temporary) / name, MOST_JSON)


def _refuse_another_model(latents: Any, network: VidTwinNetwork, file: str) -> None:
    """Refuse the statistics of latents that other weights have encoded: they scale the channels of another space.

    Raises:
        ValueError: the digests differ, or the section `latents` has none.
    """
    try:
        encoded_by = latents["model"]["weights"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: latents.model.weights cannot be read ({error}); {REMEDY}") from error
    weights = weights_digest(network.state_dict())
    if encoded_by != weights:
        raise ValueError(
            f"{file}: these latents were encoded by the model whose weights have the digest {encoded_by}, and those of "
            f"the model to export have {weights}; name latents of this model"
        )


def _of_dataset(latents: Any, file: str) -> dict[str, dict[str, list[float]]]:
    """The statistics in the section `latents` of a dataset.json, those of the two halves of the dynamics as one.

    Both halves have the same number of values in a channel. So the mean of both is the mean of the two means, and
    their variance is the mean of the two variances and the variance of the two means.
    """
    try:
        found = latents["statistics"]
        structure, w, h = (found[name] for name in ("structure", "dynamics_w", "dynamics_h"))
        mean = [(a + b) / 2 for a, b in zip(w["mean"], h["mean"], strict=True)]
        deviations = zip(w["deviation"], h["deviation"], w["mean"], h["mean"], strict=True)
        std = [math.sqrt((s * s + t * t) / 2 + ((a - b) / 2) ** 2) for s, t, a, b in deviations]
        return {
            "structure": {"mean": structure["mean"], "std": structure["deviation"]},
            "dynamics": {"mean": mean, "std": std},
        }
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{file}: latents.statistics cannot be read ({error}); {REMEDY}") from error


def _numbers(document: dict[str, Any], kind: str, name: str, count: int, file: str) -> list[float]:
    section = document[kind]
    if not isinstance(section, dict) or section.keys() != {"mean", "std"}:
        raise ValueError(f"{file}: {kind} does not have the keys mean and std; {REMEDY}")
    values = section[name]
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} entries" if isinstance(values, list) else type(values).__name__
        raise ValueError(f"{file}: {kind}.{name} has {found}, but the model has {count} channels; give one number each")
    for channel, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
            raise ValueError(f"{file}: {kind}.{name}[{channel}]={value!r:.40} must be a finite number")
        if name == "std" and value <= 0:
            raise ValueError(
                f"{file}: {kind}.std[{channel}]={value} must be above 0; leave a channel that does not vary at 1"
            )
    return [float(value) for value in values]

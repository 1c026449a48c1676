"""A `VidTwin.from_pretrained` directory from any checkpoint: one process, no ranks, no GPU, no DeepSpeed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file

from trainer.checkpoint.files import MARKER, fault, is_complete, read_marker, step_name, step_of, steps_in
from trainer.checkpoint.upload import Remote
from trainer.checkpoint.zero_files import AVERAGE, FROZEN_FILE, WEIGHT, SavedEngine, average_files
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.engine.networks import write_model


class Weights(Enum):
    """Which weights of the generator."""

    ema = "ema"
    raw = "raw"


@dataclass(frozen=True)
class Exported:
    """What was written, from where."""

    checkpoint: str
    step: int
    weights: Weights


def export(place: str, output: Path, step: int | None = None, weights: Weights | None = None) -> Exported:
    """Write the model of a checkpoint, with discriminator and logvar beside it for `init_from`.

    The values are the optimizer's fp32 masters, or their moving average, bit for bit.

    Args:
        place: a checkpoint, a run's output directory or its `checkpoints`, or the `checkpoint.upload` of a run.
        output: a directory that does not exist or is empty.
        step: of which checkpoint; None = the newest.
        weights: None = the moving average if the checkpoint has one.
    Raises:
        ValueError, FileNotFoundError: no such checkpoint, an incomplete or damaged one, or one without an average.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists and is not empty; choose another, or remove it")
    if "://" not in place:
        directory = find_checkpoint(Path(place), step)
        return _export(directory, str(directory), output, weights)
    remote = Remote(place)
    chosen = _choose(sorted(remote.survey()[0]), place, step)
    with TemporaryDirectory() as folder:
        directory = Path(folder) / step_name(chosen)
        marker = remote.marker(chosen)
        for name in read_marker(marker):
            remote.fetch(chosen, name, directory / name)
        (directory / MARKER).write_text(marker)
        return _export(directory, remote.uri(chosen), output, weights)


def find_checkpoint(place: Path, step: int | None = None) -> Path:
    """The complete checkpoint that a path and a step mean.

    Raises:
        ValueError: there is none.
    """
    if step_of(place.name) is not None or (place / "state.json").is_file():
        if not is_complete(place):
            raise ValueError(f"{place} has no {MARKER}: it was cut off while it was written; name another checkpoint")
        if step is not None and step != step_of(place.name):
            raise ValueError(f"{place} is not of step {step}; leave --step away, or name the run's output directory")
        return place
    folder = place / "checkpoints" if (place / "checkpoints").is_dir() else place
    return folder / step_name(_choose(steps_in(folder, complete=True), str(folder), step))


def _choose(steps: list[int], place: str, step: int | None) -> int:
    if not steps:
        raise ValueError(f"{place} holds no complete checkpoint; name a checkpoint or a run's output directory")
    if step is not None and step not in steps:
        raise ValueError(f"{place} holds no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def _export(directory: Path, name: str, output: Path, weights: Weights | None) -> Exported:
    files = read_marker((directory / MARKER).read_text())
    for file, entry in files.items():
        if complaint := fault(directory / file, entry):
            raise ValueError(f"{complaint}: the checkpoint is damaged; name another one")
    averages = average_files(directory)
    if weights is Weights.ema and not averages:
        raise ValueError(f"{name} has no moving average (ema.decay was 0); use --weights raw, or train with ema.decay")
    if weights is None:
        weights = Weights.ema if averages else Weights.raw
    config = load_config(TrainConfig, [directory / "config.yaml"], [])
    frozen = load_file(directory / FROZEN_FILE) if (directory / FROZEN_FILE).is_file() else {}
    generator = SavedEngine(directory / "generator", averages, frozen)
    critic = directory / "discriminator"
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed, perhaps with files that this one has not
    write_model(
        partial,
        config.model,
        generator.state(AVERAGE if weights is Weights.ema else WEIGHT),
        SavedEngine(critic).state() if critic.is_dir() else None,
    )
    partial.replace(output)
    step = json.loads((directory / "state.json").read_text())["step"]  # the directory may have been renamed
    return Exported(name, step, weights)

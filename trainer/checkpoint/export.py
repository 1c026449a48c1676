"""Makes a `VidTwin.from_pretrained` directory from any checkpoint, in one process without ranks, GPU or DeepSpeed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file

from data_pipeline.store.files import atomic_folder
from model.provenance import Weights
from trainer.checkpoint.exports import provenance_of
from trainer.checkpoint.files import MARKER, fault, read_marker, step_name
from trainer.checkpoint.lookup import chosen_step, find_checkpoint
from trainer.checkpoint.upload import Remote
from trainer.checkpoint.zero_files import AVERAGE, FROZEN_FILE, WEIGHT, SavedEngine, average_files
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.engine.networks import write_model


@dataclass(frozen=True)
class Exported:
    """What was exported, and from which checkpoint."""

    checkpoint: str
    step: int
    weights: Weights


def export(place: str, output: Path, step: int | None = None, weights: Weights | None = None) -> Exported:
    """Write the model of a checkpoint, and beside it the discriminator and logvar, which `init_from` reads.

    The values are the optimizer's fp32 masters, or their moving average, bit for bit.

    Args:
        place: a checkpoint, a run's output directory or its `checkpoints`, or the `checkpoint.upload` of a run.
        output: a directory that does not exist or is empty.
        step: the checkpoint's step; None = the newest checkpoint.
        weights: None = the moving average if the checkpoint has one, else the raw weights.
    Raises:
        ValueError, FileNotFoundError: the checkpoint does not exist, is incomplete or damaged, or has no average.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists and is not empty; choose another, or remove it")
    if "://" not in place:
        directory = find_checkpoint(Path(place), step)
        return _export(directory, str(directory), output, weights)
    remote = Remote(place)
    chosen = chosen_step(sorted(remote.survey()[0]), place, step)
    with TemporaryDirectory() as folder:
        directory = Path(folder) / step_name(chosen)
        marker = remote.marker(chosen)
        for name in read_marker(marker):
            remote.fetch(chosen, name, directory / name)
        (directory / MARKER).write_text(marker)
        return _export(directory, remote.uri(chosen), output, weights)


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
    discriminator = directory / "discriminator"
    # The step is not taken from the directory's name, because people rename checkpoints that they export.
    provenance = provenance_of(directory, weights)
    with atomic_folder(output) as folder:
        write_model(
            folder,
            config.model,
            generator.state(AVERAGE if weights is Weights.ema else WEIGHT),
            SavedEngine(discriminator).state() if discriminator.is_dir() else None,
            provenance,
        )
    return Exported(name, provenance.step, weights)

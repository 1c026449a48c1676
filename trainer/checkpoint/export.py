"""The model of any checkpoint, loaded or as a directory, in one process without ranks, GPU or DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file
from torch import Tensor

from data_pipeline.store.files import atomic_folder
from model.config import VidTwinConfig
from model.export.card import write_card
from model.export.formats import Format
from model.provenance import Provenance, Weights
from model.vidtwin import VidTwin
from trainer.checkpoint.exports import provenance_of
from trainer.checkpoint.files import MARKER, fault, read_marker, step_name
from trainer.checkpoint.lookup import chosen_step, find_checkpoint
from trainer.checkpoint.upload import Remote
from trainer.checkpoint.zero_files import AVERAGE, FROZEN_FILE, WEIGHT, SavedEngine, average_files
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.engine.networks import evaluation_copy, write_model


@dataclass(frozen=True)
class Exported:
    """What was exported, and from which checkpoint."""

    checkpoint: str
    step: int
    weights: Weights

    def describe(self) -> str:
        """Which weights, of which step and checkpoint: part of a line."""
        return f"{self.weights.value} weights of step {self.step}, from {self.checkpoint}"


@dataclass(frozen=True)
class _Checked:
    """A complete checkpoint on the disk, whose files are as they were written, and the wanted ones of its weights."""

    directory: Path
    config: VidTwinConfig
    generator: dict[str, Tensor]
    provenance: Provenance
    exported: Exported


def export(place: str, output: Path, step: int | None = None, weights: Weights | None = None) -> Exported:
    """Write the model of a checkpoint with its card, and beside it discriminator and logvar, which `init_from` reads.

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
    with _checked(place, step, weights) as found:
        discriminator = found.directory / "discriminator"
        with atomic_folder(output) as folder:
            write_model(
                folder,
                found.config,
                found.generator,
                SavedEngine(discriminator).state() if discriminator.is_dir() else None,
                found.provenance,
            )
            write_card(folder, Format.model, found.config, found.provenance)
        return found.exported


def load(place: str, step: int | None = None, weights: Weights | None = None) -> tuple[VidTwin, Exported]:
    """The model of a checkpoint in evaluation mode, fp32, with its provenance. Arguments and errors as above."""
    with _checked(place, step, weights) as found:
        vidtwin = evaluation_copy(found.config, found.generator)
        vidtwin.provenance = found.provenance
        return vidtwin, found.exported


@contextmanager
def _checked(place: str, step: int | None, weights: Weights | None) -> Iterator[_Checked]:
    """Inside, the checkpoint is on the disk: where it is, or fetched from its store."""
    if "://" not in place:
        directory = find_checkpoint(Path(place), step)
        yield _check(directory, str(directory), weights)
        return
    remote = Remote(place)
    chosen = chosen_step(sorted(remote.survey()[0]), place, step)
    with TemporaryDirectory() as folder:
        directory = Path(folder) / step_name(chosen)
        marker = remote.marker(chosen)
        for name in read_marker(marker):
            remote.fetch(chosen, name, directory / name)
        (directory / MARKER).write_text(marker)
        yield _check(directory, remote.uri(chosen), weights)


def _check(directory: Path, name: str, weights: Weights | None) -> _Checked:
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
    # The step is not taken from the directory's name, because people rename checkpoints that they export.
    provenance = provenance_of(directory, weights)
    return _Checked(
        directory,
        config.model,
        generator.state(AVERAGE if weights is Weights.ema else WEIGHT),
        provenance,
        Exported(name, provenance.step, weights),
    )

"""The model of any checkpoint, loaded or as a directory, in one process without ranks, GPU or DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from data_pipeline.store.files import atomic_folder
from model.config import VidTwinConfig
from model.provenance import Provenance, Weights
from model.vidtwin import VidTwin
from model.weights import load_tensors
from trainer.checkpoint.exports import provenance_of
from trainer.checkpoint.files import MARKER, fault, is_complete, marker_of, read_marker, step_name, unlisted
from trainer.checkpoint.lookup import chosen_step, find_checkpoint
from trainer.checkpoint.upload import Remote
from trainer.checkpoint.zero_files import AVERAGE, FROZEN_FILE, WEIGHT, SavedEngine, average_files
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.engine.networks import evaluation_copy, write_model

GENERATOR = "generator"
"""The engine that holds VidTwin."""
TRIES = 5
"""How often the newest checkpoint is looked for, where a run removes it each time before it is read."""


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
class OpenCheckpoint:
    """A complete checkpoint on the disk, whose files are as they were written, and which of its weights are wanted.

    Args:
        directory: where it lies.
        averages: the files of its moving average.
        provenance: of the wanted weights.
        exported: what to say of them.
    """

    directory: Path
    averages: list[Path]
    provenance: Provenance
    exported: Exported

    def holds(self, engine: str) -> bool:
        """Whether it has the state of an engine."""
        return (self.directory / engine).is_dir()

    def engine(self, name: str) -> SavedEngine:
        """The engine whose weights the moving average follows."""
        frozen = load_tensors(self.directory / FROZEN_FILE) if (self.directory / FROZEN_FILE).is_file() else {}
        return SavedEngine(self.directory / name, self.averages, frozen)

    def wanted(self, name: str) -> dict[str, Tensor]:
        """The wanted fp32 weights of an engine by name; its masters, or their moving average, bit for bit."""
        return self.engine(name).state(AVERAGE if self.exported.weights is Weights.ema else WEIGHT)


def export(place: str, output: Path, step: int | None = None, weights: Weights | None = None) -> Exported:
    """Write the model of a checkpoint with its card, and beside it discriminator and logvar, which `init_from` reads.

    Args:
        place, step, weights: as of `opened`.
        output: a directory that does not exist or is empty.
    Raises:
        ValueError, FileNotFoundError: as `opened`; the checkpoint is of no VidTwin.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists and is not empty; choose another, or remove it")
    with opened(place, step, weights) as found:
        write_vidtwin(found, output)
        return found.exported


def write_vidtwin(found: OpenCheckpoint, output: Path) -> None:
    """Write the VidTwin of a checkpoint; see `export`."""
    config = _vidtwin_config(found)
    discriminator = found.directory / "discriminator"
    with atomic_folder(output) as folder:
        write_model(
            folder,
            config,
            found.wanted(GENERATOR),
            SavedEngine(discriminator).state() if discriminator.is_dir() else None,
            found.provenance,
        )


def load_vidtwin(found: OpenCheckpoint) -> VidTwin:
    """The VidTwin of a checkpoint in evaluation mode, fp32, with its provenance. Raises: ValueError for a DiT."""
    vidtwin = evaluation_copy(_vidtwin_config(found), found.wanted(GENERATOR))
    vidtwin.provenance = found.provenance
    return vidtwin


def _vidtwin_config(found: OpenCheckpoint) -> VidTwinConfig:
    if not found.holds(GENERATOR):
        raise ValueError(
            f"{found.exported.checkpoint} is a checkpoint of a DiT, and a VidTwin is wanted; name a run of "
            "launch/train.py"
        )
    return load_config(TrainConfig, [found.directory / "config.yaml"], []).model


@contextmanager
def opened(place: str, step: int | None, weights: Weights | None) -> Iterator[OpenCheckpoint]:
    """Inside, a checkpoint is on the disk: where it is, or fetched from its store.

    Args:
        place: a checkpoint, a run's output directory or its `checkpoints`, or the `checkpoint.upload` of a run.
        step: the checkpoint's step; None = the newest checkpoint.
        weights: None = the moving average if the checkpoint has one, else the raw weights.
    Raises:
        ValueError, FileNotFoundError: the checkpoint does not exist, is incomplete or damaged, or has no average.
    """
    if "://" not in place:
        yield _newest(Path(place), step, weights)
        return
    remote = Remote(place)
    chosen = chosen_step(sorted(remote.survey()[0]), place, step)
    with TemporaryDirectory() as folder:
        directory = Path(folder) / step_name(chosen)
        marker = remote.marker(chosen)
        for name, entry in read_marker(marker).items():
            remote.fetch(chosen, name, directory / name, entry["bytes"])
        (directory / MARKER).write_text(marker, encoding="utf-8")
        yield _check(directory, remote.uri(chosen), weights)


class Removed(ValueError):
    """A checkpoint was removed while it was read."""


def _newest(place: Path, step: int | None, weights: Weights | None) -> OpenCheckpoint:
    """A checkpoint on the disk. Where the newest is asked for and the run prunes it, there is a newer one."""
    tries = TRIES
    while True:
        directory = find_checkpoint(place, step)
        try:
            return _check(directory, str(directory), weights)
        except Removed:
            tries -= 1
            if step is not None or directory == place or not tries:
                raise


def _check(directory: Path, name: str, weights: Weights | None) -> OpenCheckpoint:
    files = read_marker(marker_of(directory))
    for complaint in unlisted(directory, files):
        raise ValueError(f"{complaint}, or name another checkpoint")
    for file, entry in files.items():
        if complaint := fault(directory / file, entry):
            if not is_complete(directory):
                raise Removed(
                    f"{name} was removed while it was read, as a run does that has newer ones; name one of those, or "
                    "raise the run's checkpoint.keep"
                )
            raise ValueError(f"{complaint}: the checkpoint is damaged; name another one")
    averages = average_files(directory)
    if weights is Weights.ema and not averages:
        raise ValueError(f"{name} has no moving average (ema.decay was 0); use --weights raw, or train with ema.decay")
    if weights is None:
        weights = Weights.ema if averages else Weights.raw
    # The step is not taken from the directory's name, because people rename checkpoints that they export.
    provenance = provenance_of(directory, weights)
    return OpenCheckpoint(directory, averages, provenance, Exported(name, provenance.step, weights))

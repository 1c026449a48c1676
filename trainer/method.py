"""What the training loop asks of whatever is trained: a method, its batches and their loader.

A *method* owns networks, optimizers, the step and everything that goes with them: `trainer/autoencoder.py` is one. The
loop (`loop.py`, `run.py`), the checkpoints and the telemetry are written against the protocols here and know no method.
tests/trainer/second_method.py is a small method with all that a method needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from data_pipeline.read.loader import Position
from model.provenance import Provenance
from trainer.engine.gradient_watch import Gradients


class Batch(Protocol):
    """One rank's share of the samples of one step."""

    @property
    def keys(self) -> list[str]:
        """Names of the samples, for messages."""
        ...

    @property
    def position(self) -> Position:
        """Where the loader stands after this batch."""
        ...


B = TypeVar("B", bound=Batch)
B_co = TypeVar("B_co", bound=Batch, covariant=True)
B_contra = TypeVar("B_contra", bound=Batch, contravariant=True)


class Loader(Protocol[B_co]):
    """An endless sequence of batches that can begin at any position."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What a position has a meaning for; it is saved with the position, as JSON."""
        ...

    @property
    def shared_bytes(self) -> int:
        """The most bytes of shared memory that the batches of this rank's workers take; 0 without workers."""
        ...

    def continue_from(self, saved: Mapping[str, Any], position: Position) -> str:
        """Give the sequence that a position was saved with, before `from_position`.

        Args:
            saved: the `identity` that was saved with the position.
        Returns:
            A line about data that were added since, or an empty text.
        Raises:
            ValueError: the position belongs to another sequence.
        """
        ...

    def from_position(
        self, position: Position | None = None, while_waiting: Callable[[], None] | None = None
    ) -> Iterator[B_co]:
        """The batches from a position on; `while_waiting` is called about once a second while a batch is waited for."""
        ...

    def close(self) -> None:
        """End the worker processes, if there are any."""


def _nothing(means: Mapping[str, float]) -> dict[str, float]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the telemetry needs to know of a method, besides the terms of its steps.

    Attributes:
        samples_per_step: of all ranks together.
        tokens_per_sample: tokens that the networks see of a sample of full length.
        flops_per_sample: floating-point operations of a training step on such a sample.
        console: the terms that a console line shows, in their order, each with its format, e.g. ("l1", "l1 {:.4f}").
        derived: values that follow from the terms' means, e.g. a PSNR from a mean squared error.
        smaller_steps: what to set otherwise where training diverges, for messages, as a request.
    """

    samples_per_step: int
    tokens_per_sample: float
    flops_per_sample: float
    console: tuple[tuple[str, str], ...] = (("total_loss", "loss {:.4g}"),)
    derived: Callable[[Mapping[str, float]], dict[str, float]] = _nothing
    smaller_steps: str = "lower the learning rate"


class Method(Protocol[B_contra]):
    """Owns networks, optimizers and their part of a checkpoint. Every rank makes every call."""

    @property
    def facts(self) -> Facts:
        """What the telemetry must know of the method."""
        ...

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that `step` returns at every step; other terms come and go."""
        ...

    @property
    def layout(self) -> Mapping[str, Any]:
        """How the method's files in a checkpoint are cut, for people who read the checkpoint's state.json."""
        ...

    def step(self, batch: B_contra, step: int, observed: bool) -> dict[str, Tensor]:
        """Train on one global batch, after `step` steps; 0-dim device tensors, `skipped` among them.

        Args:
            observed: the step is a log step, at which terms may be measured that would cost too much at every step.
        """
        ...

    def length(self, batch: B_contra) -> float:
        """Length of the batch's samples as a share of the full length; 1 where all samples are alike."""
        ...

    def schedules(self, step: int) -> dict[str, float]:
        """What the number of a step alone decides: learning rates, weights of terms."""
        ...

    def gradients(self) -> dict[str, Gradients]:
        """Network -> what is known of non-finite gradients in the last step; nothing is computed for it."""
        ...

    def forward_seconds(self) -> float:
        """Seconds since the last call in which this rank's device computed what no other rank can delay.

        It is called at a log step, when the host has just waited for the device. 0 where nothing is measured.
        """
        ...

    def pictures(self, batch: B_contra, count: int) -> Mapping[str, Tensor]:
        """Name of a group -> at most `count` rows of clips to look at, uint8 [rows, columns, T, H, W, 3].

        The loop puts the random generators back afterwards; all else that training depends on must stay as it is.
        """
        ...

    def validate(self, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        """Measure on held-out data; the loop calls it when `validation.every` says so.

        The loop puts the random generators back afterwards; all else that training depends on must stay as it is.

        Args:
            stop_requested: whether this rank was asked to stop, so that the pass should be given up.
        Returns:
            Name -> value, the same on every rank; None, on every rank, where the pass was given up on any.
        """
        ...

    @property
    def saved_bytes(self) -> int:
        """Bytes of the tensors that `save` writes on this rank; a file's names, shapes and settings do not count."""
        ...

    def save(self, directory: Path) -> None:
        """Write everything that `load` needs so that training goes on exactly."""

    def load(self, directory: Path) -> None:
        """Undo `save`."""

    def export(self, directory: Path, provenance: Provenance) -> None:
        """Write the trained model for use. `directory` does not exist; it appears last and whole.

        Args:
            provenance: of the weights themselves.
        """


class MethodBuilder(Protocol[B]):
    """A method before its networks exist: its data are open, and everything that can be refused at once was refused."""

    @property
    def loader(self) -> Loader[B]:
        """What the method trains from."""
        ...

    def check_parent(self, order: Mapping[str, Any]) -> None:
        """Refuse a fork whose parent's networks cannot take these data, wherever reading begins.

        Args:
            order: the `identity` of the parent's loader, as its checkpoint has it.
        Raises:
            ValueError: naming what differs.
        """

    def describe_data(self) -> list[str]:
        """Lines that say what is read, and what is left out and why."""
        ...

    def build(self, fresh: bool) -> Method[B]:
        """Build the networks, which may take minutes; every rank calls it.

        Args:
            fresh: the run begins here, with `init_from` where that is set; otherwise `load` follows.
        """
        ...

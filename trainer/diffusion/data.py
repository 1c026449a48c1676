"""What the diffusion method asks of its data; whatever reads latents from a store brings it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from data_pipeline.read.batches import Position
from model.dit_config import LatentSpace
from model.latent_statistics import Statistics
from trainer.method import Batch, Loader


class LatentBatch(Batch, Protocol):
    """One rank's clips of one step. b clips."""

    @property
    def structure(self) -> Tensor:
        """Structure latents as they are stored, floats [b, d_S, n_q, h, w]."""
        ...

    @property
    def dynamics(self) -> Tensor:
        """Dynamics latents, [b, d_D, f, w + h]."""
        ...

    @property
    def labels(self) -> list[str]:
        """Names of the classes; "" where the dataset has none."""
        ...


class TextBatch(LatentBatch, Protocol):
    """A batch with the token embeddings of a caption of each clip, L tokens."""

    @property
    def text(self) -> Tensor:
        """Floats [b, L, text width]."""
        ...

    @property
    def text_mask(self) -> Tensor:
        """Bool [b, L], True for real tokens; at least one a clip."""
        ...


@dataclass
class GivenBatch:
    """A `TextBatch` of tensors from elsewhere than a dataset; only a DiT that is told of captions reads its texts."""

    structure: Tensor
    dynamics: Tensor
    labels: list[str]
    text: Tensor
    text_mask: Tensor
    keys: list[str]
    position: Position = field(default_factory=Position)


class LatentData(Protocol):
    """Latents that are open, to train from and to validate on.

    Attributes:
        space: their shapes, and the classes and texts that they have.
        statistics: of the latents that are trained from.
        empty_caption: embeddings of the empty caption, float32 [E, text width]; None without texts.
        loader: endless batches to train from.
        held_out: this rank's share of the clips that validation measures, in batches, the same ones each time it is
            gone through; the shares of all ranks are disjoint.
        held_out_clips: how many clips validation measures on all ranks together.
    """

    space: LatentSpace
    statistics: Statistics
    empty_caption: Tensor | None
    held_out: Iterable[LatentBatch]
    held_out_clips: int

    @property
    def loader(self) -> Loader[LatentBatch]:
        """What is trained from."""
        ...

    def describe(self) -> list[str]:
        """Lines that say what is read, and what is left out and why."""
        ...

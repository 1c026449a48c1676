"""What every batch says beside its tensors: which samples it holds, where it stands, and what was unreadable."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from data_pipeline.read.two_tries import BadSample


@dataclass(frozen=True)
class Position:
    """A place in the endless sequence of samples: all ranks together have read `consumed` samples of `epoch`."""

    epoch: int = 0
    consumed: int = 0


@dataclass(frozen=True)
class Substitute:
    """A place in a batch whose own sample was unreadable, with the sample that took the place."""

    place: int  # in this rank's batch
    bad: BadSample
    key: str  # of the sample that took the place


@dataclass(kw_only=True)
class Examples:
    """What every batch says of one rank's examples of one global step, in the order of the global batch."""

    captions: list[str]
    labels: list[str]  # "" where the dataset has none
    keys: list[str]
    indices: Tensor  # int64 [b], rows of index.arrow
    position: Position  # after this batch
    substitutes: list[Substitute] = field(default_factory=list)

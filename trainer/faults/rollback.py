"""Rollback: when the loss jumps up and stays up, the run goes back to a checkpoint and skips the batches since then.

The remedy is that of PaLM (Chowdhery et al. 2022, section 5.1): restart from a checkpoint before the spike and skip the
batches around it. In that work the same batches did no harm to other weights, so weights and batches cause a spike
together.

A spike is found by the modified z-score (Iglewicz and Hoaglin 1993): the distance from the median in units of the
median absolute deviation. A ratio to the median would not do, because the loss of a good model is negative here
(docs/training_losses.md).

A rollback is written to OUTPUT/rollbacks.jsonl before it takes effect. Everything else that a decision depends on is in
metrics.jsonl. So a run that is killed just before or after a rollback goes on as it would have done.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from data_pipeline.read.loader import Position
from trainer.config.running import RollbackConfig
from trainer.distributed import Ranks
from trainer.telemetry.journal import Journal, read_rows

NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
FLOOR = 0.01  # least deviation as a share of the median, because the loss on a plateau hardly deviates


class SpikingRun(RuntimeError):
    """A loss spike after which the run cannot go back: no checkpoint is old enough, or `rollback.limit` is reached."""


@dataclass(frozen=True)
class Spike:
    """A spike in the logged loss.

    Attributes:
        values: the losses of the spike, `rollback.patience` of them.
        median, deviation: of the losses logged before the spike.
        good: the last logged step before the spike.
    """

    values: list[float]
    median: float
    deviation: float
    good: int


def find_spike(logged: Sequence[tuple[int, float]], config: RollbackConfig) -> Spike | None:
    """The spike that the last `patience` of these (step, loss) pairs are.

    Returns:
        None where the last losses are no spike, or where fewer than `window` losses were logged before them.
    """
    last = logged[-config.patience :]
    before = logged[-config.patience - config.window : -config.patience]
    if config.factor == 0 or len(before) < config.window:
        return None
    centre = median(value for _, value in before)
    deviation = NORMAL * median(abs(value - centre) for _, value in before)
    limit = centre + config.factor * max(deviation, FLOOR * abs(centre))
    if any(value <= limit for _, value in last):
        return None
    return Spike([value for _, value in last], centre, deviation, before[-1][0])


@dataclass(frozen=True)
class Decision:
    """One rollback. Its fields are the keys of a row of rollbacks.jsonl."""

    step: int  # the step of the checkpoint to which the run goes back
    found: int  # the step after which the spike was found
    epoch: int  # with `consumed`: the loader's position after step `found`, from which the run goes on
    consumed: int
    epoch_then: int  # with `consumed_then`: the loader's position that the checkpoint has
    consumed_then: int
    term: str  # the loss term that spiked
    values: list[float]  # its values in the spike
    median: float  # of its values before the spike
    deviation: float
    order: dict[str, Any]  # the identity of the loader, which gives both positions their meaning

    @property
    def text(self) -> str:
        """The rollback in one line, for people."""
        values = ", ".join(f"{value:.4g}" for value in self.values)
        return (
            f"{self.term} was {values} up to step {self.found}, against a median of {self.median:.4g} and a deviation "
            f"of {self.deviation:.2g}: back to step {self.step}, and on with the batches after step {self.found}'s"
        )


class Rollbacks:
    """Finds spikes and keeps the list of the rollbacks. Every rank makes every call; the main rank decides."""

    def __init__(
        self, config: RollbackConfig, output: Path, ranks: Ranks, terms: Sequence[str], smaller_steps: str
    ) -> None:
        """
        Args:
            terms: names of the loss terms that every step has.
            smaller_steps: what to set otherwise where training diverges, for the message.
        Raises:
            ValueError: `rollback.term` is not among them.
        """
        if config.factor > 0 and config.term not in terms:
            raise ValueError(
                f"rollback.term={config.term} is not logged at every step; choose one of {', '.join(terms)}"
            )
        self.config, self.ranks, self.smaller_steps = config, ranks, smaller_steps
        self.journal = Journal(output / "rollbacks.jsonl")
        self.metrics = output / "metrics.jsonl"
        self.logged: list[tuple[int, float]] = []

    def begin(self, step: int, position: Position) -> tuple[Position, dict[str, Any] | None]:
        """Begin after `step`, at the loader's position of its checkpoint.

        Returns:
            The position to read from: `position`, or that of a rollback to this very checkpoint; and with the latter
            the identity of the loader that had it.
        """
        begin: tuple[int, int, dict[str, Any] | None] = (position.epoch, position.consumed, None)
        if self.ranks.is_main:
            if step == 0 and self.journal.path.is_file():
                self.journal.path.unlink()  # an older run in this directory wrote it; its checkpoints were removed
            elif self.journal.path.is_file():
                self.journal.set_back(step)  # of rollbacks to later steps, where the run goes back on request
                self.journal.close()
            rows = list(read_rows(self.journal.path))
            then = (rows[-1]["step"], rows[-1]["epoch_then"], rows[-1]["consumed_then"]) if rows else None
            if then == (step, position.epoch, position.consumed):
                begin = (rows[-1]["epoch"], rows[-1]["consumed"], rows[-1].get("order"))
        self._read_metrics(step)
        epoch, consumed, order = self.ranks.broadcast(begin)
        return Position(epoch, consumed), order

    def spike(self, step: int, logged: dict[str, float]) -> Spike | None:
        """The spike that ends with the values logged after `step`, or None; the same on every rank.

        Raises:
            SpikingRun: a spike, after `rollback.limit` rollbacks; raised on every rank.
        """
        config = self.config
        if config.factor == 0:
            return None
        decision: tuple[Spike | None, int] = (None, 0)
        if self.ranks.is_main:
            value = logged[config.term]
            if math.isfinite(value):  # steps with a non-finite loss are skipped, and optim.max_skipped limits them
                self.logged.append((step, value))
                del self.logged[: -config.window - config.patience]
                decision = (find_spike(self.logged, config), len(list(read_rows(self.journal.path))))
        spike, done = self.ranks.broadcast(decision)
        if spike is not None and done >= config.limit:
            raise SpikingRun(
                f"{config.term} spikes again after step {step} ({spike.values}, median before {spike.median:.4g}), and "
                f"rollback.limit={config.limit} rollbacks have been made ({self.journal.path} lists them); "
                f"{self.smaller_steps}, or raise rollback.limit, and start again"
            )
        return spike

    def record(self, decision: Decision) -> None:
        """Write a rollback to the disk. A run that is killed after this call goes on from the rollback."""
        if self.ranks.is_main:
            self.journal.append(asdict(decision))
        self._read_metrics(decision.step)
        self.ranks.barrier()

    def _read_metrics(self, step: int) -> None:
        if self.ranks.is_main and self.config.factor > 0:
            rows = (row for row in read_rows(self.metrics) if row["step"] <= step and "event" not in row)
            pairs = ((row["step"], row.get(self.config.term)) for row in rows)
            values = ((at, value) for at, value in pairs if value is not None)
            self.logged = list(deque(values, maxlen=self.config.window + self.config.patience))


def decide(
    spike: Spike,
    config: RollbackConfig,
    step: int,
    spiked: int,
    positions: tuple[Position, Position],
    order: Mapping[str, Any],
) -> Decision:
    """The rollback after a spike.

    Args:
        step: the step of the checkpoint to which the run goes back.
        spiked: the step after which the spike was found.
        positions: the loader's position that the checkpoint has, and the loader's position after step `spiked`.
        order: the loader's identity.
    """
    saved, position = positions
    return Decision(
        step=step,
        found=spiked,
        epoch=position.epoch,
        consumed=position.consumed,
        epoch_then=saved.epoch,
        consumed_then=saved.consumed,
        term=config.term,
        values=spike.values,
        median=spike.median,
        deviation=spike.deviation,
        order=dict(order),
    )

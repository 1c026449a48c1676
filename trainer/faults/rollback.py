"""A loss that has jumped up and stays up: back to the checkpoint before, and past the batches in between.

What to do is PaLM's remedy (Chowdhery et al. 2022, section 5.1): restart from a checkpoint before the spike and skip
the batches around it; the same batches from another state of the weights did no harm there, so it is the two together
that spike. When to do it is the modified z-score (Iglewicz and Hoaglin 1993): the distance from the median in units of
the median absolute deviation. A mere ratio would not do, because the loss of a good model is negative here
(docs/training.md).

A rollback is written to OUTPUT/rollbacks.jsonl before it takes effect, and whatever else a decision depends on is in
metrics.jsonl: a run that is killed after a rollback, or just before one, goes on as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from data_pipeline.read.loader import Position
from trainer.config.running import RollbackConfig
from trainer.distributed import Ranks
from trainer.telemetry.journal import Journal, read_rows

NORMAL = 1.4826  # median absolute deviation -> standard deviation of a normal distribution
FLOOR = 0.01  # least deviation, as a share of the median: a plateau has almost none


class SpikingRun(RuntimeError):
    """A spike that cannot be gone back from, or one too many."""


@dataclass(frozen=True)
class Spike:
    """The last logged losses, and what they were measured against."""

    values: list[float]
    median: float
    deviation: float
    good: int  # last step before it that was logged


def find_spike(logged: Sequence[tuple[int, float]], config: RollbackConfig) -> Spike | None:
    """Whether the last `patience` of these (step, loss) lie above those before; None while there are too few."""
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
    """One rollback: from the end of step `found` to the end of step `step`, going on with the batches at (epoch,
    consumed) instead of (epoch_then, consumed_then)."""

    step: int
    found: int
    epoch: int
    consumed: int
    epoch_then: int
    consumed_then: int
    term: str
    values: list[float]
    median: float
    deviation: float

    @property
    def text(self) -> str:
        """One line for people."""
        values = ", ".join(f"{value:.4g}" for value in self.values)
        return (
            f"{self.term} was {values} up to step {self.found}, against a median of {self.median:.4g} and a deviation "
            f"of {self.deviation:.2g}: back to step {self.step}, and on with the batches after step {self.found}'s"
        )


class Rollbacks:
    """Finds spikes, and remembers what was done about them. Every rank makes every call; the main one decides."""

    def __init__(
        self, config: RollbackConfig, output: Path, ranks: Ranks, terms: Sequence[str], step_size_settings: str
    ) -> None:
        """
        Args:
            terms: those that every step has.
            step_size_settings: what to lower where training diverges, for the message.
        Raises:
            ValueError: `rollback.term` is none of them.
        """
        if config.factor > 0 and config.term not in terms:
            raise ValueError(
                f"rollback.term={config.term} is not logged at every step; choose one of {', '.join(terms)}"
            )
        self.config, self.ranks, self.step_size_settings = config, ranks, step_size_settings
        self.journal = Journal(output / "rollbacks.jsonl")
        self.metrics = output / "metrics.jsonl"
        self.logged: list[tuple[int, float]] = []

    def begin(self, step: int, position: Position) -> Position:
        """The run stands after `step`, at the position its checkpoint says.

        Returns:
            Where to go on reading: there, or where a rollback to just this checkpoint went on.
        """
        found = (position.epoch, position.consumed)
        if self.ranks.is_main:
            if step == 0 and self.journal.path.is_file():
                self.journal.path.unlink()  # of another run in this directory, whose checkpoints were removed
            rows = list(read_rows(self.journal.path))
            then = (rows[-1]["step"], rows[-1]["epoch_then"], rows[-1]["consumed_then"]) if rows else None
            if then == (step, position.epoch, position.consumed):
                found = (rows[-1]["epoch"], rows[-1]["consumed"])
        self._read_metrics(step)
        return Position(*self.ranks.broadcast(found))

    def spike(self, step: int, logged: dict[str, float]) -> Spike | None:
        """Whether the values logged after `step` end a spike; the same on every rank.

        Raises:
            SpikingRun: `rollback.limit` has been reached; on every rank alike.
        """
        config = self.config
        if config.factor == 0:
            return None
        found: tuple[Spike | None, int] = (None, 0)
        if self.ranks.is_main:
            value = logged[config.term]
            if math.isfinite(value):  # non-finite steps are skipped, which has its own limit
                self.logged.append((step, value))
                del self.logged[: -config.window - config.patience]
                found = (find_spike(self.logged, config), len(list(read_rows(self.journal.path))))
        spike, done = self.ranks.broadcast(found)
        if spike is not None and done >= config.limit:
            raise SpikingRun(
                f"{config.term} spikes again after step {step} ({spike.values}, median before {spike.median:.4g}), and "
                f"rollback.limit={config.limit} rollbacks have been made ({self.journal.path} lists them); lower "
                f"{self.step_size_settings}, or raise rollback.limit, and start again"
            )
        return spike

    def record(self, decision: Decision) -> None:
        """Write a rollback down; from here on it holds, whatever happens to the process."""
        if self.ranks.is_main:
            self.journal.append(asdict(decision))
        self._read_metrics(decision.step)
        self.ranks.barrier()

    def _read_metrics(self, step: int) -> None:
        if self.ranks.is_main and self.config.factor > 0:
            rows = [row for row in read_rows(self.metrics) if row["step"] <= step and "event" not in row]
            pairs = [(row["step"], row.get(self.config.term)) for row in rows]
            self.logged = [(at, value) for at, value in pairs if value is not None]


def decide(spike: Spike, config: RollbackConfig, to: int, then: Position, found: int, now: Position) -> Decision:
    """The rollback from after step `found`, at position `now`, to the checkpoint of step `to`, at position `then`."""
    return Decision(
        step=to,
        found=found,
        epoch=now.epoch,
        consumed=now.consumed,
        epoch_then=then.epoch,
        consumed_then=then.consumed,
        term=config.term,
        values=spike.values,
        median=spike.median,
        deviation=spike.deviation,
    )

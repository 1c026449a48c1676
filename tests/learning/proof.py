"""What is found about samples of a DiT that was told the classes, and of one whose labels were shuffled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.learning.clips import SHOTS
from tests.learning.judge import Judge
from tests.learning.stages import Stages

GUIDANCE = 5.0
"""The paper's."""
RIGHT = 0.9
"""Of the samples, as many show the class that was asked for."""
CHANCE = 1 / len(SHOTS)
TAIL = 1e-4
"""Samples that do not follow the class that was asked for are right more often than the bound with less than this."""


@dataclass(frozen=True)
class Finding:
    """How often the judge saw the class that was asked for, and between which numbers that must lie."""

    what: str
    right: int
    total: int
    least: int
    most: int

    @property
    def met(self) -> bool:
        """Whether it is as expected."""
        return self.least <= self.right <= self.most

    @property
    def expected(self) -> str:
        """The bounds in words."""
        return f"at least {self.least}" if self.most == self.total else f"at most {self.most}"

    @property
    def mark(self) -> str:
        """What a line ends with."""
        return "" if self.met else "   <-- MISSED"


def prove(folder: Path) -> list[Finding]:
    """Do what is not yet in the folder, two commands at a time, and return the findings.

    Raises:
        RuntimeError: a command failed; the message has its last words.
    """
    stages = Stages(folder)
    stages.model()
    with ThreadPoolExecutor(2) as pool:
        told = pool.submit(lambda: [stages.samples(False, guidance) for guidance in (GUIDANCE, 0.0)])
        shuffled = pool.submit(lambda: stages.samples(True, GUIDANCE))
        guided, unguided = told.result()
        without = shuffled.result()
    latents = stages.latents(False)
    judge = Judge(latents)
    windows, (right, total) = judge.right_of_windows(latents), judge.right_of_samples(guided)
    chance = bound_of_chance(total)
    return [
        at_least("training windows, whose class is known", *windows, share=RIGHT),
        at_least(f"samples with guidance {GUIDANCE:g}", right, total, share=RIGHT),
        Finding("the same samples with guidance 0", *judge.right_of_samples(unguided), least=0, most=chance),
        Finding("samples of a DiT with shuffled labels", *judge.right_of_samples(without), least=0, most=chance),
    ]


def bound_of_chance(total: int) -> int:
    """The most right samples of a DiT that does not know which class was asked for; more have a chance below `TAIL`.

    Let such a DiT make class j with probability q_j, whatever was asked for. Equally many samples are asked of each of
    the six classes, so the expected share of right ones is the mean of the q_j, which is 1 in 6 whatever the q_j are.
    Among all sums of independent trials with this mean share, the binomial distribution of 1 in 6 has the heaviest tail
    (Hoeffding 1956, theorem 4), so its quantile bounds them all.

    Args:
        total: samples, equally many of each class.
    """
    from scipy.stats import binom  # a second to import

    return int(binom.isf(TAIL, total, CHANCE))


def at_least(what: str, right: int, total: int, share: float) -> Finding:
    """A finding that needs a share of all."""
    return Finding(what, right, total, least=-(-total * round(100 * share) // 100), most=total)

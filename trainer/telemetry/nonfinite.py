"""Explains skipped steps: which loss terms and gradients were not finite, and which clips were in the batch.

A step with a non-finite loss or gradient is skipped on all ranks. What may explain it stays on the device until the
next log step, which reads it only if a step was skipped. Finite gradients cost nothing: at ZeRO 0 in fp32 their norms
are computed anyway. In the other cases the first skipped step, which DeepSpeed reports on the host, makes
`GradientWatch` check each parameter from the next step on, until a step is applied again.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.distributed import Ranks
from trainer.engine.gradient_watch import Gradients
from trainer.telemetry.journal import Journal

REMEMBERED = 20  # at most so many steps before a log step can be explained
NAMED = 5  # at most so many parameters of a network are named
CLIPS = 8  # the error message names at most so many clips of a rank; the file names all


class NonFiniteRun(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient."""


@dataclass
class _Step:
    step: int
    keys: list[str]
    skipped: Tensor
    terms: dict[str, Tensor]
    gradients: dict[str, Gradients]


class SkippedSteps:
    """Remembers the last steps, so that the skipped ones among them can be explained. Every rank makes every call.

    Args:
        path: the file that gets one JSON object for each skipped step.
        ranks: the ranks whose findings are put together.
    """

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks
        self._steps: deque[_Step] = deque(maxlen=REMEMBERED)

    def add(
        self,
        step: int,
        keys: list[str],
        skipped: Tensor,
        finite: dict[str, Tensor],
        gradients: dict[str, Gradients],
    ) -> None:
        """Remember a step.

        Args:
            step: its number, counted from 1.
            keys: of this rank's clips in the step's batch.
            skipped: 1 if the step was skipped, else 0; 0-dim on the device.
            finite: term -> whether it was finite, 0-dim on the device.
            gradients: network -> which of its gradients were finite.
        """
        self._steps.append(_Step(step, keys, skipped, finite, gradients))

    def forget(self) -> None:
        """Forget the remembered steps, because none of them was skipped."""
        self._steps.clear()

    def set_back(self, step: int) -> None:
        """Drop the file's rows of later steps, because the run makes those steps again. Only the main rank calls it."""
        if self.path.is_file():
            journal = Journal(self.path)
            journal.set_back(step)
            journal.close()

    def explain(self) -> list[dict[str, Any]]:
        """Put the findings of all ranks on the skipped steps together, write them to the file, and forget the steps.

        Returns:
            A row for each skipped step: `step`; `terms` and `gradients` (network -> count and first names) that were
            not finite on any rank; and `clips` by rank, of the ranks with the most non-finite terms.
        """
        mine = [_findings(step) for step in self._steps if bool(step.skipped.item())]
        self.forget()
        parts = self.ranks.gather(mine)
        rows = [_together(step_findings) for step_findings in zip(*parts, strict=True)]
        if self.ranks.is_main and rows:
            with self.path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        return rows


def _findings(step: _Step) -> dict[str, Any]:
    """This rank's findings on a skipped step, read from the device."""
    terms = {name: finite for name, finite in step.terms.items() if not name.startswith("grad_norm")}
    broken = [name for name, finite in terms.items() if not finite.item()]
    gradients = {}
    for network, (names, finite) in step.gradients.items():
        bad = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]
        if bad:
            gradients[network] = {"count": len(bad), "of": len(names), "first": bad[:NAMED]}
    return {"step": step.step, "terms": broken, "gradients": gradients, "clips": step.keys}


def _together(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """One row for a step, from the findings of all ranks in the order of the ranks."""
    gradients: dict[str, Any] = {}
    for part in parts:
        for network, finding in part["gradients"].items():
            if finding["count"] > gradients.get(network, {"count": 0})["count"]:
                gradients[network] = finding
    # A term that is reduced over ranks is NaN on all of them. So the rank where the NaN began has the most such terms.
    most = max(len(part["terms"]) for part in parts)
    blamed = [rank for rank, part in enumerate(parts) if len(part["terms"]) == most]
    return {
        "step": parts[0]["step"],
        "terms": sorted({name for part in parts for name in part["terms"]}),
        "gradients": gradients,
        "clips": {str(rank): parts[rank]["clips"] for rank in blamed},
    }


def describe(row: dict[str, Any]) -> str:
    """A row of `SkippedSteps.explain` as text for the error message."""
    lines = [f"  loss terms: {', '.join(row['terms']) or 'all finite'}"]
    for network, finding in row["gradients"].items():
        unnamed = finding["count"] - len(finding["first"])
        more = f", and {unnamed} more" if unnamed else ""
        names = ", ".join(finding["first"])
        lines.append(f"  gradients of the {network}: {finding['count']} of {finding['of']}: {names}{more}")
    for rank, clips in row["clips"].items():
        more = f", and {len(clips) - CLIPS} more" if len(clips) > CLIPS else ""
        lines.append(f"  clips of rank {rank}: {', '.join(clips[:CLIPS])}{more}")
    return "\n".join(lines)

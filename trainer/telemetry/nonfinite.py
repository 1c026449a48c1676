"""Which numbers were not finite: loss terms, gradients by parameter, and the clips that were in the batch.

A step with a non-finite loss or gradient is skipped on all ranks. What could explain it stays on the device until the
next log step, which reads it only if a step was skipped. Gradients cost nothing while they are finite: at ZeRO 0 in
fp32 their norms are there anyway; elsewhere the first skipped step, which DeepSpeed knows on the host, makes
`GradientWatch` look at each parameter from the next step on, until one is applied again.
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

REMEMBERED = 20  # steps before a log step that can be explained
NAMED = 5  # parameters of a network that are named
CLIPS = 8  # clips of a rank that the error message names; the file has all


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
    """What is known of the last steps, read when one of them was skipped. Every rank makes every call.

    Args:
        path: of the file that gets one JSON object a skipped step.
        ranks: their findings are put together.
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
            keys: of this rank's clips in its batch.
            skipped: 1 where it was skipped, 0-dim on the device.
            finite: term -> whether it was finite, 0-dim on the device.
            gradients: network -> what is known of its gradients.
        """
        self._steps.append(_Step(step, keys, skipped, finite, gradients))

    def forget(self) -> None:
        """None of the remembered steps was skipped."""
        self._steps.clear()

    def set_back(self, step: int) -> None:
        """Drop what the file says of later steps, which the run makes again; for the main rank."""
        if self.path.is_file():
            journal = Journal(self.path)
            journal.set_back(step)
            journal.close()

    def explain(self) -> list[dict[str, Any]]:
        """The skipped ones among the remembered steps, put together over ranks, written down and forgotten.

        Returns:
            For each: step, terms and gradients (network -> how many, the first names) that were not finite on any rank,
            and clips, by rank: those of the ranks with the most non-finite terms.
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
    """What this rank saw of a skipped step, read from the device."""
    terms = {name: finite for name, finite in step.terms.items() if not name.startswith("grad_norm")}
    broken = [name for name, finite in terms.items() if not finite.item()]
    gradients = {}
    for network, (names, finite) in step.gradients.items():
        bad = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]
        if bad:
            gradients[network] = {"count": len(bad), "of": len(names), "first": bad[:NAMED]}
    return {"step": step.step, "terms": broken, "gradients": gradients, "clips": step.keys}


def _together(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """One row of a step from the findings of all ranks, in their order."""
    gradients: dict[str, Any] = {}
    for part in parts:
        for network, found in part["gradients"].items():
            if found["count"] > gradients.get(network, {"count": 0})["count"]:
                gradients[network] = found
    # Terms that are reduced over ranks are NaN on all of them, so the most such terms are where it began.
    most = max(len(part["terms"]) for part in parts)
    blamed = [rank for rank, part in enumerate(parts) if len(part["terms"]) == most]
    return {
        "step": parts[0]["step"],
        "terms": sorted({name for part in parts for name in part["terms"]}),
        "gradients": gradients,
        "clips": {str(rank): parts[rank]["clips"] for rank in blamed},
    }


def describe(row: dict[str, Any]) -> str:
    """A row of `SkippedSteps.explain` for the error message."""
    lines = [f"  loss terms: {', '.join(row['terms']) or 'all finite'}"]
    for network, found in row["gradients"].items():
        more = f", and {found['count'] - len(found['first'])} more" if found["count"] > len(found["first"]) else ""
        names = ", ".join(found["first"])
        lines.append(f"  gradients of the {network}: {found['count']} of {found['of']}: {names}{more}")
    for rank, clips in row["clips"].items():
        more = f", and {len(clips) - CLIPS} more" if len(clips) > CLIPS else ""
        lines.append(f"  clips of rank {rank}: {', '.join(clips[:CLIPS])}{more}")
    return "\n".join(lines)

"""What a row finds, and what a row is told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

MARK = "@finding "  # begins a line of a row's output that is a finding


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One result.

    Args:
        name: what it is.
        value: a number in `unit`, or words.
        against: what it was held against, in words; empty for a mere measurement.
        ok: whether it held; None for a mere measurement.
        keep: belongs into the file of reference numbers, under `name`.
    """

    name: str
    value: float | str
    unit: str = ""
    against: str = ""
    ok: bool | None = None
    keep: bool = False

    def emit(self) -> None:
        """Hand it to the command, which reads this process's output."""
        print(MARK + json.dumps(asdict(self)), flush=True)

    def line(self) -> str:
        """For people."""
        value = f"{self.value:.5g}" if isinstance(self.value, float) else str(self.value)
        verdict = {True: "ok      ", False: "DIFFERS ", None: "        "}[self.ok]
        against = f"   (against {self.against})" if self.against else ""
        return f"  {verdict}{self.name}: {value} {self.unit}".rstrip() + against


def parse(line: str) -> Finding | None:
    """The finding of a line of a row's output; None for any other line."""
    return Finding(**json.loads(line.removeprefix(MARK))) if line.startswith(MARK) else None


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a row is told.

    Args:
        device: cuda or cpu.
        folder: an empty folder for whatever the row writes.
        results: a folder for files that people read afterwards.
        reference: numbers of a run on the CPU by the names of its findings; may be empty.
    """

    device: str
    folder: Path
    results: Path
    reference: Mapping[str, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """On the CPU everything is tiny, because only the script itself is tried there."""
        return self.device == "cuda"

    def write(self, file: Path) -> None:
        """For the process of a row."""
        values = {"device": self.device, "folder": str(self.folder), "results": str(self.results)}
        file.write_text(json.dumps(values | {"reference": dict(self.reference)}))

    @classmethod
    def read(cls, file: Path) -> Context:
        """Undo `write`."""
        values = json.loads(file.read_text())
        return cls(
            device=values["device"],
            folder=Path(values["folder"]),
            results=Path(values["results"]),
            reference=values["reference"],
        )


def measured(name: str, value: float | str, unit: str = "") -> None:
    """A number that is held against nothing."""
    Finding(name=name, value=value, unit=unit).emit()


def held(name: str, difference: float, allowed: float, against: str) -> None:
    """A difference, and how large it may be. What is not a number is too large."""
    ok = math.isfinite(difference) and difference <= allowed
    Finding(name=name, value=difference, against=f"{against}, at most {allowed:g}", ok=ok).emit()


def holds(name: str, ok: bool, value: str, against: str) -> None:
    """A property that is there or not."""
    Finding(name=name, value=value, against=against, ok=ok).emit()


def kept(name: str, value: float) -> None:
    """A number for the file of reference numbers."""
    Finding(name=name, value=value, keep=True).emit()


def relative(value: float, reference: float, floor: float = 1e-6) -> float:
    """Difference as a share of the reference."""
    return abs(value - reference) / max(abs(reference), floor)

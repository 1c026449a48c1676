"""What tests read of the reports of launch/evaluate.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def model_of(output: Path) -> dict[str, Any]:
    """What the report says of its one model."""
    (model,) = json.loads((output / "report.json").read_text())["models"]
    assert isinstance(model, dict)
    return model


def results_of(output: Path) -> list[dict[str, Any]]:
    """What the report says of the one model, for each source."""
    results = model_of(output)["results"]
    assert isinstance(results, list)
    return results


def measured(report: Path) -> list[str]:
    """Names of the sources that a report has values of."""
    (result,) = results_of(report)
    return sorted(result["per_source"])

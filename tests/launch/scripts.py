"""The scripts of launch/ as a user starts them, in forks of a Python that has imported torch (tests/tools/warm.py)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.tools import warm

ROOT = Path(__file__).parents[2]
_FILES = [file for file in sorted((ROOT / "launch").glob("*.py")) if "\nif __name__" in file.read_text()]
COMMANDS = {f"launch/{file.name}": [str(file)] for file in _FILES} | {"launch.demo": ["-m", "launch.demo"]}
"""Name in messages -> what Python is given."""
WITH_KEYS = (
    *("launch/build_shards.py", "launch/encode_latents.py", "launch/encode_text.py"),
    *("launch/estimate.py", "launch/train.py", "launch/train_diffusion.py", "launch.demo"),
)


def run(
    script: str, *words: str, environment: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run one of `COMMANDS` in the project's folder."""
    variables = {**os.environ, "COLUMNS": "100", **(environment or {})}
    return warm.run([*COMMANDS[script], *words], environment=variables, timeout=timeout)

"""The scripts of launch/ as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

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
    return subprocess.run(
        [sys.executable, *COMMANDS[script], *words],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )

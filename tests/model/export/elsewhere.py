"""A process that has an exported directory and cannot import this project: what it computes, and what its card says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HIDING = """
import importlib.abc, sys
OURS = ("model", "trainer", "data_pipeline", "launch")
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"{name} is not on this machine", name=name)
sys.meta_path.insert(0, Hidden())
"""
NOTHING_OF_OURS = """
found = sorted(name for name in sys.modules if name.partition(".")[0] in OURS)
assert not found, found
"""


def run_elsewhere(folder: Path, script: str) -> None:
    """Run a script in `folder`, in a Python that finds no package of this project.

    Args:
        script: also sees `sys`. What it makes it writes into the folder.
    """
    (folder / "script.py").write_text(HIDING + script + NOTHING_OF_OURS)
    environment = {**os.environ, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def snippets(directory: Path) -> list[str]:
    """The Python blocks of a directory's model card, with the directory's own path in them."""
    blocks = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text("utf-8"), re.DOTALL)
    return [block.replace("DIRECTORY", str(directory)) for block in blocks]

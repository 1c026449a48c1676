"""Trainings as users start them: two CPU ranks under `deepspeed`, what they write, and their processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.tools.ports import free_port

ROOT = Path(__file__).parents[2]


def environment(folder: Path) -> dict[str, str]:
    """No compiler may be needed: extensions built at run time would appear in TORCH_EXTENSIONS_DIR."""
    settings = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    return os.environ | settings


def start_two_ranks(script: str, settings: Path, output: Path, *words: str) -> subprocess.Popen[str]:
    """Two CPU ranks of a script that trains, and their launcher, in a session of their own."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command = [*launcher, script, "--config", str(settings), f"output={output}", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(output.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def rows_of(output: Path, terms: Sequence[str]) -> list[dict[str, Any]]:
    """These terms of every step that a run has written down."""
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    written = map(json.loads, filter(lambda s: s.endswith("}"), lines))
    return [{key: row.get(key) for key in terms} for row in written if "event" not in row]


def members(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else []
        except OSError:
            continue
        if fields and int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def ended(process: subprocess.Popen[str], seconds: float = 180) -> str:
    """What a whole run said. It is ended after twice the time that it takes on two very busy cores."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        for orphan in members(process.pid):
            os.kill(orphan, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Poll, at most so long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)

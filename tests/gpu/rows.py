"""The rows of `python -m tests.gpu`, in order of value, each with its budget; and one row run in a process of its own.

A process of its own, because an error of a GPU kernel spoils the process that it comes in, because ZeRO 3 replaces a
function of torch in its process, and because a row that hangs can then be ended.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.findings import Context, Finding, parse

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Row:
    """A part of the command: the module `tests.gpu.NAME`, whose `run(context)` emits findings.

    Args:
        seconds: budget on a GPU.
        proves: what it is for.
    """

    name: str
    seconds: float
    proves: str


ROWS = (
    Row("environment", 40, "versions, device, DeepSpeed's import"),
    Row("steps", 110, "each precision and ZeRO stage against the CPU, saving and loading, offloading"),
    Row("attention", 45, "the attention kernels at the model's shapes"),
    Row("speed", 110, "clips/s, MFU, memory against the estimate, DeepSpeed's share, waits of the host, a profile"),
    Row("compiled", 120, "torch.compile against eager"),
    Row("training", 90, "launch/train.py: workers, pinned batches, validation, stop and resume"),
    Row("metrics", 20, "PSNR, SSIM and LPIPS against fp64 on the CPU, with and without TF32"),
    Row("masters", 40, "what init_from becomes in 16 bits; LPIPS's gradient in fp16"),
    Row("two_ranks", 45, "two ranks on one GPU over gloo against one"),
)
NAMES = tuple(row.name for row in ROWS)


@dataclass(frozen=True)
class Outcome:
    """What became of a row: its findings, seconds, and `error`, which is empty where it ended well."""

    findings: list[Finding]
    seconds: float
    error: str


def run_row(name: str, context_file: Path) -> None:
    """The body of a row's process."""
    importlib.import_module(f"tests.gpu.{name}").run(Context.read(context_file))


def start_row(
    row: Row, context: Context, environment: Mapping[str, str], seconds: float, say: Callable[[Finding], None]
) -> Outcome:
    """Run a row in a process, and hand on its findings as they come.

    Args:
        seconds: after which the process, and all that it has started, is ended.
    """
    begin = time.monotonic()
    context.folder.mkdir(parents=True)
    context_file = context.folder / "context.json"
    context.write(context_file)
    log = context.results / f"{row.name}.log"
    findings: list[Finding] = []
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tests.gpu", "--row", row.name, str(context_file)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        late = False
        while True:
            try:
                line = lines.get(timeout=max(0.0, begin + seconds - time.monotonic()))
            except queue.Empty:
                late = True
                break
            if line is None:
                break
            if (finding := parse(line)) is not None:
                findings.append(finding)
                say(finding)
            else:
                errors.write(line)
                errors.flush()
        _end(process)
    error = f"not done after {seconds:.0f} s" if late else ""
    if not late and process.returncode:
        error = f"ended with status {process.returncode}: " + _last_lines(log)
    return Outcome(findings, time.monotonic() - begin, error)


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    process.wait()
    lines.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    """End the process's whole session, which it leads: workers and ranks that it has started go with it."""
    with contextlib.suppress(ProcessLookupError):  # nothing of it may be left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_lines(log: Path, count: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])

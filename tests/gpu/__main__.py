"""What only a GPU can show of the trainer, in one command of at most 8 minutes on one H100 or H200.

    python -m tests.gpu --cpu --write-reference reference.json      # on any machine with the project installed
    python -m tests.gpu --wheels DIR                                # there too: what the GPU machine lacks (40 MB)
    python -m tests.gpu --wheels-from DIR --reference reference.json --output OUT       # on the GPU machine

The last one runs from the repository's root, and nothing is installed. `--only NAME ...` repeats parts. `--cpu` does
all that a CPU can of it, with tiny sizes, so that the script itself is known to work. With several GPUs:

    torchrun --nproc_per_node N -m tests.gpu --ranks equal          # and --ranks raise; nobody has run them yet

Each result is printed as it comes. OUT (or $OUT, or runs/gpu) gets results.json, a log of each row, and a profile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.gpu.findings import Context, Finding
from tests.gpu.rows import NAMES, ROOT, ROWS, run_row, start_row
from tests.gpu.wheels import fetch, unpack

BUDGET_S = 470.0


def main() -> int:
    arguments = parse()
    if arguments.row:
        run_row(arguments.row[0], Path(arguments.row[1]))
        return 0
    if arguments.wheels:
        try:
            fetch(arguments.wheels)
        except subprocess.CalledProcessError as error:
            print(f"--wheels {arguments.wheels}: pip ended with {error.returncode}; see above", file=sys.stderr)
            return 1
        return 0
    if arguments.ranks:
        from tests.gpu.ranks import run

        return run(arguments.ranks)
    with tempfile.TemporaryDirectory(prefix="vidtwin-gpu-") as name:
        return run_all(arguments, Path(name))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these rows; default: all")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, everything tiny")
    output = os.environ.get("OUT", "runs/gpu")
    parser.add_argument("--output", type=Path, default=Path(output), help=f"folder of the results (here: {output})")
    parser.add_argument("--reference", type=Path, help="numbers of the CPU to hold the GPU's against")
    parser.add_argument("--write-reference", type=Path, help="with --cpu: write these numbers")
    parser.add_argument(
        "--wheels", type=Path, metavar="DIR", help="fetch what a GPU machine lacks, and do nothing else"
    )
    parser.add_argument("--wheels-from", type=Path, metavar="DIR", help="use these wheels")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for all rows (here: 470)")
    parser.add_argument(
        "--ranks", choices=("equal", "raise"), help="one of several ranks under torchrun (see ranks.py)"
    )
    parser.add_argument("--row", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write_reference and not arguments.cpu:
        parser.error("--write-reference takes the numbers of the CPU: give --cpu as well")
    if arguments.ranks and "MASTER_PORT" not in os.environ:
        parser.error(f"--ranks {arguments.ranks} is for torchrun --nproc_per_node N -m tests.gpu --ranks")
    if arguments.wheels_from and not list(arguments.wheels_from.glob("*.whl")):
        parser.error(f"--wheels-from {arguments.wheels_from} holds no .whl; make them with --wheels")
    return arguments


def run_all(arguments: argparse.Namespace, scratch: Path) -> int:
    """Every wanted row; exit status 1 where one failed or differs."""
    begin = time.monotonic()
    results: Path = arguments.output
    results.mkdir(parents=True, exist_ok=True)
    device = "cpu" if arguments.cpu else "cuda"
    reference = json.loads(arguments.reference.read_text()) if arguments.reference else {}
    environment = row_environment(device, arguments.wheels_from, scratch)
    rows: dict[str, dict[str, Any]] = {}
    numbers: dict[str, float] = {}
    bad = False
    for row in ROWS:
        if row.name not in arguments.only:
            continue
        left = arguments.budget - (time.monotonic() - begin)
        if left < 10:
            print(f"{row.name}: left out, because the time is over", flush=True)
            rows[row.name] = {"error": "left out, because the time is over"}
            bad = True
            continue
        print(f"{row.name}: {row.proves}", flush=True)
        context = Context(device=device, folder=scratch / row.name, results=results, reference=reference)
        outcome = start_row(row, context, environment, min(left, row.seconds if device == "cuda" else left), say)
        print(f"  ({outcome.seconds:.0f} s)" + (f" FAILED: {outcome.error}" if outcome.error else ""), flush=True)
        bad = bad or bool(outcome.error) or any(finding.ok is False for finding in outcome.findings)
        rows[row.name] = asdict(outcome)
        numbers |= {f.name: f.value for f in outcome.findings if f.keep and isinstance(f.value, float)}
        (results / "results.json").write_text(json.dumps({"device": device, "rows": rows}, indent=1))
    if arguments.write_reference:
        arguments.write_reference.write_text(json.dumps(numbers, indent=1))
    print(summary(rows), flush=True)
    print(f"results: {results}/results.json", flush=True)
    return int(bad)


def say(finding: Finding) -> None:
    if not finding.keep:
        print(finding.line(), flush=True)


def row_environment(device: str, wheels: Path | None, scratch: Path) -> dict[str, str]:
    """The environment of the rows: where they find the project and the unpacked wheels, and the device they may use."""
    places = [str(ROOT)]
    if wheels is not None:
        unpack(wheels, scratch / "wheels")
        places.append(str(scratch / "wheels"))
    places += [place for place in (os.environ.get("PYTHONPATH"),) if place]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "DS_ACCELERATOR": device}
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    return environment


def summary(rows: dict[str, dict[str, Any]]) -> str:
    """What differs or failed, and last the figures that people ask for first."""
    lines = ["", "summary"]
    for name, row in rows.items():
        if row["error"]:
            lines.append(f"  FAILED  {name}: {row['error'].splitlines()[0]}")
        lines += [Finding(**f).line() for f in row.get("findings", []) if f["ok"] is False]
    held = [f for row in rows.values() for f in row.get("findings", []) if f["ok"] is not None]
    lines.append(f"  {sum(f['ok'] for f in held)} of {len(held)} findings hold")
    for name in ("attention", "speed", "compiled"):
        lines += [Finding(**f).line() for f in rows.get(name, {}).get("findings", []) if f["ok"] is None]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

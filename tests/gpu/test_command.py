"""`python -m tests.gpu --cpu`: the command that waits for a GPU is known to work, without what a GPU machine lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.findings import Context, Finding
from tests.gpu.rows import NAMES, ROOT, Row, start_row
from tests.gpu.small_model import STEPS, TERMS, key
from tests.gpu.wheels import unpack

QUICK = ("environment", "steps", "attention", "metrics")
SLOW = tuple(name for name in NAMES if name not in QUICK)


def environment() -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "tests/gpu/absent"),
        "DS_ACCELERATOR": "cpu",
    }


def command(output: Path, *words: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--cpu", "--output", str(output), *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def check_rows(output: Path, names: tuple[str, ...]) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads((output / "results.json").read_text())["rows"]
    assert tuple(rows) == names
    for name, row in rows.items():
        assert row["error"] == "", name
        assert row["findings"], name
        assert not [found["name"] for found in row["findings"] if found["ok"] is False]
    return rows


@pytest.mark.slow
def test_the_quick_rows_hold_on_the_cpu_and_leave_the_reference_numbers(tmp_path: Path) -> None:
    reference = tmp_path / "reference.json"
    done = command(tmp_path, "--only", *QUICK, "--write-reference", str(reference))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check_rows(tmp_path, QUICK)
    assert set(json.loads(reference.read_text())) == {key(term, step) for term in TERMS for step in range(STEPS)}
    assert "findings hold" in done.stdout


@pytest.mark.slow
def test_numbers_that_differ_from_the_reference_are_seen(tmp_path: Path) -> None:
    reference = tmp_path / "reference.json"
    command(tmp_path, "--only", "steps", "--write-reference", str(reference))
    numbers = json.loads(reference.read_text())
    assert command(tmp_path, "--only", "steps", "--reference", str(reference)).returncode == 0
    reference.write_text(json.dumps(numbers | {key("l1", 2): 1.01 * numbers[key("l1", 2)]}))
    done = command(tmp_path, "--only", "steps", "--reference", str(reference))
    assert done.returncode == 1
    assert "DIFFERS fp32 ZeRO 0: l1" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_other_rows_hold_on_the_cpu(tmp_path: Path, name: str) -> None:
    done = command(tmp_path, "--only", name, "--budget", "500", seconds=540)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    check_rows(tmp_path, (name,))


@pytest.mark.slow
def test_several_ranks_make_the_same_steps_at_every_stage_and_end_where_one_raises() -> None:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    outputs = {}
    for what in ("equal", "raise"):
        done = subprocess.run(
            [*start, "-m", "tests.gpu", "--ranks", what],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert (done.returncode == 0) == (what == "equal"), done.stderr[-3000:]
        outputs[what] = done.stdout
    overlapped = " zero.overlap_comm=true zero.bucket=5000: "
    for way in ("0: ", "1: ", "2: ", "3: ", f"1{overlapped}", f"2{overlapped}"):
        lines = [line for line in outputs["equal"].splitlines() if f"zero.stage={way}" in line]
        assert len(lines) == len(TERMS), way
        assert all(line.startswith("  ok  ") for line in lines), lines
    assert "ZeroDivisionError: the last rank raises this error on purpose" in outputs["raise"]


def row(tmp_path: Path, name: str, seconds: float) -> tuple[str, list[Finding]]:
    said: list[Finding] = []
    context = Context(device="cpu", folder=tmp_path / name, results=tmp_path)
    outcome = start_row(Row(name, seconds, ""), context, environment(), seconds, said.append)
    return outcome.error, said


def test_a_row_that_fails_says_how(tmp_path: Path) -> None:
    error, said = row(tmp_path, "no_such_row", 120)
    assert "ended with status 1" in error
    assert "No module named 'tests.gpu.no_such_row'" in error
    assert said == []


def test_a_row_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    error, _ = row(tmp_path, "two_ranks", 1.0)
    assert error == "not done after 1 s"
    named = f"{tmp_path}/two_ranks/context.json".encode()
    commands = [file for file in Path("/proc").glob("[0-9]*/cmdline") if file.is_file()]
    assert not [file for file in commands if named in _bytes(file)]


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # the process has ended
        return b""


def test_wheels_are_unpacked_into_one_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", f"NAME = {name!r}\n")
    unpack(tmp_path, tmp_path / "site")
    words = [sys.executable, "-c", "import one, two; print(one.NAME, two.NAME)"]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["one", "two"]
    with pytest.raises(ValueError, match=r"holds no \.whl; make them with --wheels"):
        unpack(tmp_path / "site", tmp_path / "other")

"""launch/sample.py on two processes: the samples of one process, also after the processes were killed; and the page."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launch import sample
from tests.launch.test_sample import save_dit
from tests.launch.two_ranks import ROOT, ended, environment, members, wait_until
from tests.tools import browser
from tests.tools.extras import NEEDS_DIFFUSERS
from tests.tools.ports import free_port

pytestmark = NEEDS_DIFFUSERS
COUNT, NAMES = 3, [f"class{place:04d}-{number:05d}" for place in range(2) for number in range(3)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the processes have: sums of several threads may be rounded in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(*words: str, folder: Path) -> subprocess.Popen[str]:
    """Two processes of the script and their launcher, in a session of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launcher, "--master-port", str(free_port()), "launch/sample.py", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def words(folder: Path, decoder: Path, output: Path, steps: int = 2) -> list[str]:
    """What makes each sample alone, so that it meets the same rounding everywhere."""
    dit = folder / "dit"
    if not dit.exists():
        save_dit(dit, decoder)
    places = ["--model", str(dit), "--output", str(output), "--decoder", str(decoder)]
    return [*places, "--fps", "8", "--steps", str(steps), "--count", str(COUNT), "--device", "cpu", "--batch", "1"]


def named(output: Path) -> list[int]:
    """Living processes whose words name the output; torchrun gives each rank a session of its own."""
    files = Path("/proc").glob("[0-9]*/cmdline")
    return [int(file.parent.name) for file in files if str(output).encode() in _bytes_of(file)]


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # the process has just ended
        return b""


@pytest.mark.slow
def test_two_processes_make_the_files_of_one(tmp_path: Path, tiny_model_directory: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert sample.main(words(tmp_path, tiny_model_directory, one)) == 0
    process = start(*words(tmp_path, tiny_model_directory, two), folder=tmp_path)
    said = ended(process)
    assert process.returncode == 0, said
    assert said.count("6 new samples of 6") == said.count("6 new videos") == 1, said
    files = {file.name: file.read_bytes() for file in one.iterdir()}
    assert sorted(files) == sorted(
        ["index.html", "sampling.json", "videos.json", *(f"{n}{e}" for n in NAMES for e in (".mp4", ".safetensors"))]
    )
    assert {file.name: file.read_bytes() for file in two.iterdir()} == files


@pytest.mark.slow
def test_processes_that_were_killed_are_followed_by_others_that_go_on(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert sample.main(words(tmp_path, tiny_model_directory, one, steps=500)) == 0
    command = words(tmp_path, tiny_model_directory, two, steps=500)
    process = start(*command, folder=tmp_path)
    wait_until(lambda: bool(list(two.glob("*.safetensors"))))
    for number in sorted({*members(process.pid), *named(two)}):
        os.kill(number, signal.SIGKILL)
    process.wait(timeout=60)
    kept = {file: file.stat().st_mtime_ns for file in two.glob("*.safetensors")}
    assert 0 < len(kept) < len(NAMES)
    process = start(*command, folder=tmp_path)
    said = ended(process)
    assert f"{len(NAMES) - len(kept)} new sample" in said, said
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    for file in one.iterdir():
        assert (two / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.skipif(not browser.program(), reason="no Chromium")
def test_a_browser_plays_the_page(tmp_path: Path, tiny_model_directory: Path) -> None:
    output = tmp_path / "samples"
    assert sample.main(words(tmp_path, tiny_model_directory, output)) == 0
    seen = browser.look_at(output / "index.html")
    assert seen["console"] == [], "the page's own policy lets its videos through"
    assert (seen["videos"], seen["moving"]) == (len(NAMES), len(NAMES))
    assert re.search(r"6 videos in 2 rows", seen["text"])
    assert seen["width"] <= 1280

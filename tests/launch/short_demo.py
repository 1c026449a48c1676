"""The demo for its test: an evaluation of few windows, and scripts in forks of this process, which has imported torch.

python -m tests.launch.short_demo --output DIRECTORY [KEY=VALUE ...]

A perceptual network takes seconds for all windows, and each of six scripts would take some for its imports. What is no
Python script, the `deepspeed` command, is a process of its own, as always.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import launch.demo.commands
import launch.demo.run
from launch.demo.__main__ import main
from launch.demo.commands import run_command
from tests.tools import warm

WINDOWS = 4
"""Windows measured of each split: more than the page shows of one."""
PATIENCE_S = 300


def in_a_fork(server: warm.Server, command: list[str], folder: Path, environment: dict[str, str]) -> int:
    """Run a command as `run_command` does."""
    if command[0] != sys.executable:
        return run_command(command, folder, environment)
    done = server.run(command[1:], folder, {**os.environ, **environment}, PATIENCE_S)
    print(done.stdout, done.stderr, sep="", end="", flush=True)
    return done.returncode


if __name__ == "__main__":
    forks = warm.fork_server()
    launch.demo.run.WINDOWS = WINDOWS
    launch.demo.commands.run_command = lambda *words: in_a_fork(forks, *words)
    sys.exit(main())

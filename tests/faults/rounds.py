"""Two drivers on one output, disturbed at moments that a seed chooses, and held against an undisturbed run.

    python -m tests.faults.rounds --folder DIR --kind build --rounds 60     # half a minute a round

One round starts the same command twice at once. Its seed says what happens then: nothing, SIGKILL to one driver,
SIGKILL to a worker, or one driver stands still for a while. A killed driver is started again. At the end each driver
that was left alone must have ended well, and every object must be as the undisturbed run wrote it. The folder of a
round that differs is kept, with what both drivers printed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults import builds

EVENTS = ("nothing", "driver killed", "worker killed", "driver stopped")


@dataclass(frozen=True)
class Race:
    """What two drivers do at once.

    Attributes:
        command: output -> what a user types.
        expected: SHA-256 of every object of the undisturbed output.
        units: how many units its plan has.
        unit_process: how a Ray worker names itself while it does a unit.
    """

    command: Callable[[Path], list[str]]
    expected: dict[str, str]
    units: int
    unit_process: str = builds.UNIT_PROCESS


def prepared(folder: Path, kind: str) -> Race:
    """The inputs and the undisturbed run of a race.

    Args:
        folder: a new folder.
        kind: `build` makes shards of eight videos, `encode` latents of a small dataset.
    """
    folder.mkdir(parents=True)
    if kind == "build":
        source = builds.write_videos(folder / "videos", 8)
        race = Race(lambda output: builds.build_command(source, output, "run.cpus=1"), {}, 8)
    else:
        from tests.faults.test_encoding_killed import of_latents

        encoding = of_latents(folder / "inputs")
        race = Race(encoding.writing, {}, encoding.units, encoding.unit_process)
    builds.build(race.command(folder / "undisturbed"), folder / "log")
    race.expected.update(builds.fingerprint(folder / "undisturbed"))
    assert builds.committed(folder / "undisturbed") == race.units
    return race


def play(race: Race, folder: Path, seed: int) -> str:
    """One round in a new folder; what happened in it.

    Raises:
        AssertionError: a driver that was left alone did not end well, or the output differs.
    """
    folder.mkdir(parents=True)
    choice, output = random.Random(seed), folder / "output"
    event, at, pause = choice.choice(EVENTS), choice.randrange(race.units), choice.uniform(0.0, 1.0)
    command = race.command(output)
    with (
        builds.started(command, folder / "log-1", unit_process=race.unit_process) as first,
        builds.started(command, folder / "log-2", unit_process=race.unit_process) as second,
    ):
        drivers = choice.sample([first, second], 2)
        killed = _disturb(event, drivers[0], lambda: output.exists() and builds.committed(output) >= at, pause)
        statuses = {driver.log.name: driver.wait() for driver in drivers if driver is not killed}
    assert set(statuses.values()) == {0}, f"{event} at {at}: {statuses}\n{first.text()}\n{second.text()}"
    if killed is not None:
        builds.build(command, killed.log)
    found = builds.fingerprint(output)
    different = [key for key in found.keys() | race.expected.keys() if found.get(key) != race.expected.get(key)]
    assert not different, f"{event} at {at}: absent, new or changed: {sorted(different)}"
    return f"{event}, {at} units done"


def _disturb(event: str, driver: builds.Build, reached: Callable[[], bool], pause_s: float) -> builds.Build | None:
    """Let the event happen when so much is done; the driver where it was killed. A driver may have ended before."""
    deadline = time.monotonic() + builds.DEADLINE_S
    while not reached() and driver.process.poll() is None:
        assert time.monotonic() < deadline, driver.text()
        time.sleep(0.02)
    time.sleep(pause_s)
    if driver.process.poll() is not None:
        return None
    if event == "driver killed":
        builds.gone(driver.kill())
        return driver
    if event == "worker killed" and (working := driver.unit_processes()):
        working[0].send_signal(signal.SIGKILL)
    if event == "driver stopped":
        os.kill(driver.process.pid, signal.SIGSTOP)
        time.sleep(4 * pause_s)
        os.kill(driver.process.pid, signal.SIGCONT)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kind", choices=["build", "encode"], required=True)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first round")
    arguments = parser.parse_args()
    race = prepared(arguments.folder / f"{arguments.kind}-inputs-{arguments.first}", arguments.kind)
    differed = 0
    for seed in range(arguments.first, arguments.first + arguments.rounds):
        folder, begun = arguments.folder / f"{arguments.kind}-{seed:03d}", time.monotonic()
        try:
            said = play(race, folder, seed)
            shutil.rmtree(folder)
        except AssertionError as error:
            differed += 1
            said = f"DIFFERS, kept in {folder}: {str(error)[:3000]}"
        print(f"{arguments.kind} {seed}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{arguments.kind}: {arguments.rounds} rounds, {differed} differed", flush=True)
    sys.exit(bool(differed))


if __name__ == "__main__":
    main()

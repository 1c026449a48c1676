"""The builder on Ray: complete, resumable, proven; killed processes and a failing store leave nothing false behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow as pa
import pytest
import ray

from data_pipeline.build.builder import TASK_NAME, finish_build, plan_build
from data_pipeline.build.config import DriverConfig, UnitResources
from data_pipeline.build.dataset_job import run_missing
from data_pipeline.build.driver import run_units
from data_pipeline.build.progress import Progress
from data_pipeline.build.unit import UnitReport
from data_pipeline.build.worker import BuildJob
from data_pipeline.dataset.finalize import status
from data_pipeline.dataset.units import committed_units
from data_pipeline.dataset.verify import verify
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from tests.data_pipeline.build import bodies, stub
from tests.data_pipeline.build.conftest import ROWS
from tests.data_pipeline.build.stub import config_of, contents

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("ray_started")


def test_the_dataset_says_what_the_sources_were(undisturbed: LocalStore, source: Path) -> None:
    dataset = json.loads(undisturbed.read("dataset.json"))
    rows = dataset["rows"]
    assert (
        rows["input"] == ROWS == rows["committed"] + sum(rows["rejected"].values()) + sum(rows["quarantined"].values())
    )
    captionless = [number for number in range(ROWS) if number % 7 == 3]
    assert rows["rejected"]["caption_missing"] == len(captionless)
    assert rows["quarantined"] == {"undecodable": sum(n % 6 == 4 and n not in captionless for n in range(ROWS))}
    assert (dataset["format"], dataset["fps"], dataset["storage"]["short_side"]) == (1, 8, 256)
    assert sum(shard["samples"] for shard in dataset["shards"]) == dataset["samples"] == sum(dataset["splits"].values())
    assert [shard["name"] for shard in dataset["shards"]] == sorted(undisturbed.keys("shards/"))
    index = pa.ipc.open_file(str(undisturbed.local_path("index.arrow"))).read_all()
    assert index.num_rows == dataset["samples"]
    for sample in index.to_pylist():
        data = undisturbed.read(
            dataset["shards"][sample["shard"]]["name"], sample["video_offset"], sample["video_size"]
        )
        cut = stub.cut(source / sample["source"])
        assert data in [clip.data for clip in cut.clips]
    assert verify(undisturbed).problems == []
    assert "6 of 6 units committed (100.0 %) of 24 rows; complete" in status(undisturbed)


def counted(page: str) -> dict[str, float]:
    """The run's counters on a metrics page: of rows by fate, of others by name."""
    series = re.findall(r"^ray_vidtwin_(\w+?)(?:_total)?\{([^}]*)\} ([0-9.e+]+)$", page, re.MULTILINE)
    fates = [(re.search(r'fate="(\w+)"', tags), name, value) for name, tags, value in series]
    return {fate[1] if fate else name: float(value) for fate, name, value in fates}


def test_prometheus_sees_what_was_built(undisturbed: LocalStore, tmp_path: Path) -> None:
    """A build of clips, and a run with units of another kind. The counters are sums over this process's runs so far."""
    latents = Progress(2, 0, 4, 3600.0, items_name="latents", stream=io.StringIO())
    settings = {"config": DriverConfig(), "resources": UnitResources(), "progress": latents, "name": "test-unit"}
    run_units(bodies.Job(str(tmp_path)), range(2), bodies.function, **settings)  # type: ignore[arg-type]
    dataset = json.loads(undisturbed.read("dataset.json"))
    expected = {
        "committed": dataset["rows"]["committed"],
        "quarantined": sum(dataset["rows"]["quarantined"].values()),
        "clips": dataset["samples"],
        "shard_bytes": sum(shard["bytes"] for shard in dataset["shards"]),
        **{"kept": 2, "left": 2, "latents": 2},
    }
    port = ray.nodes()[0]["MetricsExportPort"]
    counts: dict[str, float] = {}
    for _ in range(180):  # Ray's agent publishes every few seconds
        with suppress(URLError):  # the agent itself comes up seconds after Ray
            counts = counted(urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode())
        if all(counts.get(name, 0.0) >= count for name, count in expected.items()):
            break
        time.sleep(1)
    else:
        pytest.fail(f"at least {expected} expected, {counts} published")


def test_a_finished_dataset_is_left_alone(undisturbed: LocalStore, source: Path) -> None:
    before = {key: undisturbed.local_path(key).stat().st_mtime_ns for key in undisturbed.keys()}
    result = stub.build(config_of(source, undisturbed.root))
    assert (result.run.done, result.run.failed) == (0, {})
    assert result.dataset is not None
    assert result.dataset.to_bytes() == undisturbed.read("dataset.json")
    assert {key: undisturbed.local_path(key).stat().st_mtime_ns for key in undisturbed.keys()} == before


def failing(job: BuildJob, unit: int) -> UnitReport:
    """Unit 2 fails always, unit 3 once, unit 4 takes its worker down once."""
    marks = Path(job.config.output).parent
    first = not (marks / f"tried-{unit}").exists()
    (marks / f"tried-{unit}").touch()
    if unit == 2 or (unit == 3 and first):
        raise OSError(f"no route to the store from unit {unit}")
    if unit == 4 and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return stub.run_unit(job, unit)


def test_failures_are_retried_then_reported_and_the_rest_is_kept(
    source: Path, tmp_path: Path, undisturbed: LocalStore
) -> None:
    output = tmp_path / "out"
    result = stub.build(config_of(source, output), failing)
    assert list(result.run.failed) == [2]
    assert "no route to the store from unit 2" in result.run.failed[2]
    assert result.dataset is None
    store = LocalStore(output)
    assert not store.exists("dataset.json")
    assert [key for key in store.keys("units/") if key.endswith("2.json")] == []
    assert "1 of 6 units are not committed (first: 2)" in verify(store).problems[0]
    result = stub.build(config_of(source, output))
    assert result.run.done == 1
    assert contents(store) == contents(undisturbed)


def unreachable(job: BuildJob, unit: int) -> UnitReport:
    """A store that nobody can write to."""
    raise OSError("no route to the store")


def test_a_run_in_which_everything_fails_stops_early(source: Path, tmp_path: Path) -> None:
    config = config_of(source, tmp_path / "out")
    config.run.max_failed, config.run.in_flight = 2, 1
    result = stub.build(config, unreachable)
    assert list(result.run.failed) == [0, 1]
    assert "0 of 6 units committed (0.0 %) of 24 rows; in work or interrupted" in status(LocalStore(tmp_path / "out"))


def test_a_folder_of_sources_that_goes_away_blames_no_row(
    source: Path, tmp_path: Path, undisturbed: LocalStore
) -> None:
    videos, away = tmp_path / "videos", tmp_path / "away"
    shutil.copytree(source, videos)
    config = config_of(videos, tmp_path / "out")
    store = LocalStore(config.output)
    job, missing = plan_build(config, stub.ENCODER, store)
    stub.run_unit(job, missing.pop(0))
    videos.rename(away)
    run = run_missing(job, missing, stub.run_unit, TASK_NAME)
    assert (run.done, run.failed) == (0, {})
    assert re.search(r"row \d+, video 'v\d+\.mp4': the folder of the sources, .*videos, cannot be read", run.stopped)
    assert finish_build(job, run, store).dataset is None
    assert committed_units(store) == {0}
    away.rename(videos)
    stub.build(config)  # of five units, or of four where a worker of the stopped run has come to one meanwhile
    assert committed_units(store) == set(range(6))
    records = {key: digest for key, digest in contents(undisturbed).items() if key.startswith(("shards/", "units/"))}
    assert records.items() <= contents(store).items()


def test_leftovers_of_killed_attempts_are_swept_and_nothing_else(
    source: Path, tmp_path: Path, undisturbed: LocalStore
) -> None:
    store = LocalStore(tmp_path / "out")
    store.write("shards/000003-000.tar", b"half a shard of an attempt that was killed")
    store.write("shards/000003-009.tar", b"a shard that the attempt which counts does not have")
    store.write("shards/mine.txt", b"a file of the user")
    (store.root / "units").mkdir()
    (store.root / "units/.tmp-123-abc").write_bytes(b"half a record")
    stub.build(config_of(source, store.root))
    expected = contents(undisturbed) | {"shards/mine.txt": hashlib.sha256(b"a file of the user").hexdigest()}
    assert contents(store) == expected
    assert not (store.root / "units/.tmp-123-abc").exists()


@pytest.mark.s3
def test_the_same_dataset_on_a_real_s3_gateway(source: Path, s3_uri: str, undisturbed: LocalStore) -> None:
    result = stub.build(config_of(source, s3_uri), with_environment())
    assert result.run.failed == {}
    store = open_store(s3_uri)
    assert contents(store) == contents(undisturbed)
    assert verify(store).problems == []
    store.delete("units/000001.json")
    assert stub.build(config_of(source, s3_uri), with_environment()).run.done == 1
    assert contents(store) == contents(undisturbed)


def with_environment() -> Callable[[BuildJob, int], UnitReport]:
    """The stub body on workers that were started before the test set its environment."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def body(job: BuildJob, unit: int) -> UnitReport:
        os.environ.update(environment)
        return stub.run_unit(job, unit)

    return body


# --- a driver that is stopped or killed ------------------------------------------------------------------------------

DRIVER = """
import sys
from tests.data_pipeline.build import stub, test_builder
config = stub.config_of({source!r}, {output!r})
config.run.cpus = 2
try:
    stub.build(config, test_builder.slow)
except KeyboardInterrupt:
    sys.exit(130)
"""


def slow(job: BuildJob, unit: int) -> UnitReport:
    """Two units are done; the others hang in the middle, with a shard written but no record."""
    if unit >= 2:
        open_store(job.config.output).write(f"shards/{unit:06d}-000.tar", b"not yet whole")
        time.sleep(600)
    return stub.run_unit(job, unit)


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_a_stopped_driver_leaves_whole_units_only_and_the_next_run_completes(
    number: signal.Signals, source: Path, undisturbed: LocalStore, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    code = DRIVER.format(source=str(source), output=str(output))
    driver = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 240
        written = [output / f"units/{unit:06d}.json" for unit in (0, 1)] + [output / "shards/000002-000.tar"]
        while not all(path.exists() for path in written):
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(driver.pid, number)  # Ctrl-C reaches the whole group, too
        assert driver.wait(240) == (130 if number is signal.SIGINT else -signal.SIGKILL)
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    store = LocalStore(output)
    assert [key for key in store.keys("units/") if key.endswith(".json")] == ["units/000000.json", "units/000001.json"]
    assert not store.exists("dataset.json")
    assert stub.build(config_of(source, output)).run.done == 4
    assert contents(store) == contents(undisturbed)

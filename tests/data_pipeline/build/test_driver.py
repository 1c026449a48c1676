"""The builder on Ray: complete, resumable, proven; killed processes and a failing store leave nothing false behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pyarrow as pa
import pytest
import ray

from data_pipeline.build.config import RunConfig, ShardsConfig
from data_pipeline.build.driver import BuildResult, build
from data_pipeline.build.ray_cluster import start_local_cluster
from data_pipeline.build.unit import UnitReport
from data_pipeline.build.worker import Job
from data_pipeline.dataset.finalize import status
from data_pipeline.dataset.verify import verify
from data_pipeline.source.config import SplitConfig
from data_pipeline.store.base import Store
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from tests.data_pipeline.build import stub

ROOT = Path(__file__).parents[3]
ROWS = 24
Listener = tuple[int, str, str, int]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[set[Listener]]:
    """One Ray for the tests of this file; two cores whatever the machine has. What was listening here before it."""
    before = listeners()
    start_local_cluster(2)
    yield before
    ray.shutdown()


def listeners() -> set[Listener]:
    """Where this process and those below it wait for connections: process, its name, address, port."""
    this, found = psutil.Process(), set()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found |= {
                (process.pid, process.name(), connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
                for connection in process.net_connections()
                if connection.status == psutil.CONN_LISTEN
            }
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub.write_sources(tmp_path_factory.mktemp("sources"), ROWS)


def config_of(source: Path, output: str | Path) -> ShardsConfig:
    return ShardsConfig(
        source=str(source), output=str(output), unit_rows=4, split=SplitConfig(val=0.3), run=RunConfig(attempts=2)
    )


def run(source: Path, output: str | Path, body: Callable[[Job, int], UnitReport] = stub.run_unit) -> BuildResult:
    return build(config_of(source, output), body=body, encoder=stub.ENCODER)


def contents(store: Store) -> dict[str, str]:
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in store.keys()}


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A dataset built without any trouble."""
    store = LocalStore(tmp_path_factory.mktemp("undisturbed"))
    assert run(source, store.root).built == ROWS // 4
    return store


def test_the_dataset_says_what_the_sources_were(undisturbed: LocalStore) -> None:
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
        cut = stub.cut(Path(config_path(undisturbed)) / sample["source"])
        assert data in [clip.data for clip in cut.clips]
    assert verify(undisturbed).problems == []
    assert "6 of 6 units committed (100.0 %) of 24 rows; complete" in status(undisturbed)


def config_path(store: LocalStore) -> str:
    """Where the sources are: every output of this file was built from the one folder."""
    return os.environ["STUB_SOURCE"]


@pytest.fixture(autouse=True)
def _source_path(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_SOURCE", str(source))


def test_ray_of_our_own_is_reached_from_this_machine_only(cluster: set[Listener]) -> None:
    """Whoever reaches the ports of a Ray cluster can run code on it."""
    listening = listeners() - cluster
    assert {name for _, name, _, _ in listening} >= {"gcs_server", "raylet"}
    assert {address for _, _, address, _ in listening} == {"127.0.0.1"}


def test_prometheus_sees_what_was_built(undisturbed: LocalStore) -> None:
    rows = json.loads(undisturbed.read("dataset.json"))["rows"]
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {"committed": rows["committed"], "quarantined": sum(rows["quarantined"].values())}
    for _ in range(180):  # Ray's agent publishes every few seconds
        try:
            page = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
        except URLError:  # the agent itself comes up seconds after Ray
            page = ""
        # the series are this process's sum over all builds of this file so far, at least the undisturbed one's
        series = re.findall(r'^ray_vidtwin_rows(?:_total)?\{[^}]*fate="(\w+)"[^}]*\} ([0-9.e+]+)$', page, re.MULTILINE)
        seen = {fate: float(value) for fate, value in series}
        if seen.keys() >= wanted.keys() and all(seen[fate] >= count for fate, count in wanted.items()):
            break
        time.sleep(1)
    else:
        pytest.fail(f"{wanted} expected, {seen} seen")


def test_a_finished_dataset_is_left_alone(undisturbed: LocalStore, source: Path) -> None:
    before = {key: undisturbed.local_path(key).stat().st_mtime_ns for key in undisturbed.keys()}
    result = run(source, undisturbed.root)
    assert (result.built, result.failed) == (0, {})
    assert result.dataset is not None
    assert result.dataset.to_bytes() == undisturbed.read("dataset.json")
    assert {key: undisturbed.local_path(key).stat().st_mtime_ns for key in undisturbed.keys()} == before


def failing(job: Job, unit: int) -> UnitReport:
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
    result = run(source, output, failing)
    assert list(result.failed) == [2]
    assert "no route to the store from unit 2" in result.failed[2]
    assert result.dataset is None
    store = LocalStore(output)
    assert not store.exists("dataset.json")
    assert [key for key in store.keys("units/") if key.endswith("2.json")] == []
    found = verify(store)
    assert "1 of 6 units are not committed (first: 2)" in found.problems[0]
    result = run(source, output)
    assert result.built == 1
    assert contents(store) == contents(undisturbed)


def unreachable(job: Job, unit: int) -> UnitReport:
    """A store that nobody can write to."""
    raise OSError("no route to the store")


def test_a_run_in_which_everything_fails_stops_early(source: Path, tmp_path: Path) -> None:
    config = config_of(source, tmp_path / "out")
    config.run.max_failed, config.run.in_flight = 2, 1
    result = build(config, body=unreachable, encoder=stub.ENCODER)
    assert list(result.failed) == [0, 1]
    assert "0 of 6 units committed (0.0 %) of 24 rows; in work or interrupted" in status(LocalStore(tmp_path / "out"))


def test_leftovers_of_killed_attempts_are_swept_and_nothing_else(
    source: Path, tmp_path: Path, undisturbed: LocalStore
) -> None:
    store = LocalStore(tmp_path / "out")
    store.write("shards/000003-000.tar", b"half a shard of an attempt that was killed")
    store.write("shards/000003-009.tar", b"a shard that the attempt which counts does not have")
    store.write("shards/mine.txt", b"a file of the user")
    (store.root / "units").mkdir()
    (store.root / "units/.tmp-123-abc").write_bytes(b"half a record")
    run(source, store.root)
    expected = contents(undisturbed) | {"shards/mine.txt": hashlib.sha256(b"a file of the user").hexdigest()}
    assert contents(store) == expected
    assert not (store.root / "units/.tmp-123-abc").exists()


@pytest.mark.s3
def test_the_same_dataset_on_a_real_s3_gateway(source: Path, s3_uri: str, undisturbed: LocalStore) -> None:
    result = build(config_of(source, s3_uri), body=with_environment(), encoder=stub.ENCODER)
    assert result.failed == {}
    store = open_store(s3_uri)
    assert contents(store) == contents(undisturbed)
    assert verify(store).problems == []
    store.delete("units/000001.json")
    assert run(source, s3_uri, with_environment()).built == 1
    assert contents(store) == contents(undisturbed)


def with_environment() -> Callable[[Job, int], UnitReport]:
    """The stub body on workers that were started before the test set its environment."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def body(job: Job, unit: int) -> UnitReport:
        os.environ.update(environment)
        return stub.run_unit(job, unit)

    return body


# --- verification ----------------------------------------------------------------------------------------------------


def flip_a_byte(store: LocalStore) -> str:
    path = store.local_path("shards/000001-000.tar")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return r"unit 1: shards/000001-000\.tar is not what was committed.*delete .*units/000001\.json and run"


def remove_a_shard(store: LocalStore) -> str:
    store.delete("shards/000002-000.tar")
    return r"unit 2: shards/000002-000\.tar is missing"


def cut_a_shard(store: LocalStore) -> str:
    path = store.local_path("shards/000002-000.tar")
    path.write_bytes(path.read_bytes()[:-512])
    return r"unit 2: shards/000002-000\.tar has \d+ bytes, committed were \d+"


def edited(store: LocalStore, change: Callable[[dict[str, Any]], None]) -> None:
    path = store.local_path("units/000003.json")
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))


def lose_a_row(store: LocalStore) -> str:
    edited(store, lambda record: record["rows"].pop(0))
    return r"unit 3: row 13 \('v012\.mp4'\) has no fate"


def double_a_row(store: LocalStore) -> str:
    edited(store, lambda record: record["rows"].insert(0, record["rows"][0]))
    return r"unit 3: row 13 \('v012\.mp4'\) is recorded 1 times too often"


def invent_a_clip(store: LocalStore) -> str:
    edited(store, lambda record: record["rows"][0].update(clips=5))
    return r"unit 3: row 13 is recorded with 5 clips, the index has 2"


def change_a_reason(store: LocalStore) -> str:
    def quarantine(record: dict[str, Any]) -> None:
        row = record["rows"][3]
        row["fate"], row["error"], row["detail"] = "quarantined", "missing", "there is no such file"
        for name in ("reason", "measured", "rejected"):
            row.pop(name, None)

    edited(store, quarantine)
    return r"dataset\.json: 'rows' is not what the commit records say"


def edit_a_measurement(store: LocalStore) -> str:
    edited(store, lambda record: record["rows"][2]["rejected"][0]["measured"].update(value=9))
    return r"dataset\.json: 'records' is not what the commit records say"


def lose_a_record(store: LocalStore) -> str:
    store.delete("units/000005.json")
    return r"1 of 6 units are not committed \(first: 5\)"


def damage_the_index(store: LocalStore) -> str:
    path = store.local_path("index.arrow")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    return r"index\.arrow is not the index of these shards; delete .*dataset\.json and run"


def damage_a_unit_index(store: LocalStore) -> str:
    store.write("units/000001.arrow", b"nonsense")
    return r"units/000001\.json cannot be used: units/000001\.arrow is not the index"


def edit_the_totals(store: LocalStore) -> str:
    path = store.local_path("dataset.json")
    dataset = json.loads(path.read_bytes())
    dataset["rows"]["committed"] += 1
    path.write_text(json.dumps(dataset))
    return r"dataset\.json: 'rows' is not what"


def add_a_stray_shard(store: LocalStore) -> str:
    store.write("shards/000099-000.tar", b"")
    return r"shards/000099-000\.tar belongs to no committed unit"


DAMAGES = [
    flip_a_byte, remove_a_shard, cut_a_shard, lose_a_row, double_a_row, invent_a_clip, change_a_reason,
    edit_a_measurement, lose_a_record, damage_the_index, damage_a_unit_index, edit_the_totals, add_a_stray_shard,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_verification_finds_the_damage_and_names_the_remedy(
    damage: Callable[[LocalStore], str], undisturbed: LocalStore, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(undisturbed.root, tmp_path / "copy")
    store = LocalStore(tmp_path / "copy")
    assert verify(store).problems == []
    expected = damage(store)
    problems = verify(store).problems
    assert any(re.search(expected, problem) for problem in problems), problems


def test_following_the_remedy_mends_the_dataset(source: Path, undisturbed: LocalStore, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(undisturbed.root, tmp_path / "copy")
    store = LocalStore(tmp_path / "copy")
    for damage in (flip_a_byte, remove_a_shard, lose_a_row):
        damage(store)
    for problem in verify(store).problems:
        if match := re.search(r"delete (\S+) and run", problem):
            Path(match[1]).unlink(missing_ok=True)
    assert run(source, store.root).built == 3
    assert contents(store) == contents(undisturbed)
    assert verify(store).problems == []


def test_verifying_something_else_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no plan\.json"):
        verify(LocalStore(tmp_path))


# --- a driver that is stopped or killed ------------------------------------------------------------------------------

DRIVER = """
import sys, time
from data_pipeline.build.driver import build
from data_pipeline.dataset.finalize import status
from data_pipeline.build.config import RunConfig, ShardsConfig; from data_pipeline.source.config import SplitConfig
from tests.data_pipeline.build import stub, test_driver as test_builder
config = test_builder.config_of({source!r}, {output!r})
config.run.cpus = 2
try:
    build(config, body=test_builder.slow, encoder=stub.ENCODER)
except KeyboardInterrupt:
    sys.exit(130)
"""


def slow(job: Job, unit: int) -> UnitReport:
    """Two units are done; the others hang in the middle, with a shard written but no record."""
    if unit >= 2:
        open_store(job.config.output).write(f"shards/{unit:06d}-000.tar", b"not yet whole")
        time.sleep(600)
    return stub.run_unit(job, unit)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
def test_a_stopped_driver_leaves_whole_units_only_and_the_next_run_completes(
    number: signal.Signals, source: Path, undisturbed: LocalStore, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    code = DRIVER.format(source=str(source), output=str(output))
    driver = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 240
        wanted = [output / f"units/{unit:06d}.json" for unit in (0, 1)] + [output / "shards/000002-000.tar"]
        while not all(path.exists() for path in wanted):
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
    assert run(source, output).built == 4
    assert contents(store) == contents(undisturbed)

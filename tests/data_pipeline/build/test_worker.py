"""A unit's scratch folder: its process's alone while that lives; the next one removes it after it was killed."""

import fcntl
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.build import worker
from data_pipeline.build.builder import plan_build
from data_pipeline.build.config import RunConfig, ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.scratch import scratch_folder
from data_pipeline.build.unit_body import GivenBack
from data_pipeline.build.worker import BuildJob
from data_pipeline.cut.config import ClipConfig
from data_pipeline.dataset.units import committed_units
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from tests.data_pipeline.build import stub

KILLED = """
import os, signal, sys
from data_pipeline.build.scratch import scratch_folder
with scratch_folder(sys.argv[1]) as folder:
    (folder / "half a shard").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)]).returncode == -signal.SIGKILL
    (killed,) = tmp_path.iterdir()
    with scratch_folder(str(tmp_path)) as living:
        assert not killed.exists()
        with scratch_folder(str(tmp_path)) as other:
            assert {*tmp_path.iterdir()} == {living, other}
    assert os.listdir(tmp_path) == []


def test_a_process_that_gets_another_job_does_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives a process units of several builds; it keeps its worker as long as the job is the same."""
    monkeypatch.setattr(worker, "_worker", None)
    monkeypatch.setattr(worker, "_isolated", lambda config: stub.cut)
    source = stub.write_sources(tmp_path / "src", 2)
    workers = []
    for name in ("one", "one", "other"):
        config = ShardsConfig(source=str(source), output=str(tmp_path / name), unit_rows=1)
        planned = make_plan(config, stub.ENCODER, LocalStore(tmp_path / name))
        for unit in range(planned.plan.units):
            worker.run_unit(BuildJob(config, planned.plan, planned.base), unit)
        workers.append(worker._worker)
        assert len(list((tmp_path / name / "units").glob("*.json"))) == 2
    assert workers[0] is workers[1] is not workers[2]


def test_a_cutter_has_the_limits_of_its_job() -> None:
    config = ShardsConfig(run=RunConfig(cut_timeout_s=7.0, cut_memory_bytes=123_456_789), clip=ClipConfig(crf=20))
    cutter = worker._isolated(config).__self__  # type: ignore[attr-defined]
    assert (cutter.timeout_s, cutter.memory_bytes, cutter.config.crf) == (7.0, 123_456_789, 20)


def test_a_folder_that_another_process_looks_at_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers that begin a unit at the same moment: one looks for abandoned folders and meets the other's."""
    flock, others = fcntl.flock, []

    def late(file: Any, kind: int) -> None:
        if kind == fcntl.LOCK_EX and len(others) < 3:
            others.append(kind)
            with scratch_folder(str(tmp_path)):
                pass
        flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    with scratch_folder(str(tmp_path)) as folder:
        (folder / "video").write_bytes(b"x")
    assert len(others) == 3
    assert os.listdir(tmp_path) == []


def test_a_unit_that_is_given_back_names_its_machine_in_every_process() -> None:
    back = pickle.loads(pickle.dumps(GivenBack("no S3 credentials", "node-7")))
    assert (str(back), back.host) == ("no S3 credentials", "node-7")
    assert GivenBack("x").host == os.uname().nodename


def test_a_worker_with_another_current_folder_writes_where_the_command_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers of a running cluster have the current folder, and may have the home folder, of whoever started it."""
    here, there = tmp_path / "here", tmp_path / "there"
    stub.write_sources(here / "src", 1)
    there.mkdir()
    for output in ("out", "~/out"):
        monkeypatch.chdir(here)
        monkeypatch.setenv("HOME", str(here / "home"))
        config = replace(stub.config_of("src", output), run=RunConfig(scratch="scratch"))
        store = open_store(output)
        job, missing = plan_build(config, stub.ENCODER, store)
        monkeypatch.chdir(there)
        monkeypatch.setenv("HOME", str(there))
        for unit in missing:
            stub.run_unit(job, unit)
        assert committed_units(store) == set(missing) == {0}
    assert not list(there.iterdir())

"""A disk without space: the run says so, blames no row, keeps nothing partial, and the same command completes it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.http import download
from data_pipeline.store.open import open_store
from tests.data_pipeline.build import stub
from tests.faults import builds
from tests.faults.conftest import Undisturbed
from tests.faults.disks import ext4_disk, make_read_only, make_writable, needs_root, small_disk
from tests.tools.file_limit import file_limit
from tests.tools.web import QuietHandler, serving


@pytest.fixture
def server() -> Iterator[str]:
    """A URL of 300 kB."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "300000")
            self.end_headers()
            self.wfile.write(bytes(300_000))

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}/v.mp4"


def test_a_download_that_does_not_fit_is_not_the_sources_fault(server: str, tmp_path: Path) -> None:
    with file_limit(100_000), pytest.raises(OSError, match="File too large"):
        download(server, tmp_path / "v.mp4", SourcesConfig())
    assert list(tmp_path.iterdir()) == []
    download(server, tmp_path / "v.mp4", SourcesConfig())
    assert (tmp_path / "v.mp4").stat().st_size == 300_000


@pytest.mark.parametrize("limit", [1_000, 20_000, 80_000])
def test_a_unit_that_does_not_fit_leaves_nothing_and_fits_later(limit: int, tmp_path: Path) -> None:
    """Space runs out in the record or index, in the shard's scratch file, and in a later sample of it."""
    from data_pipeline.build.planner import make_plan
    from data_pipeline.build.worker import BuildJob, Worker

    source = stub.write_sources(tmp_path / "videos", 6)
    found = {}
    for name in ("disturbed", "undisturbed"):
        config = ShardsConfig(source=str(source), output=str(tmp_path / name), unit_rows=6)
        store = open_store(config.output)
        planned = make_plan(config, stub.ENCODER, store)
        worker = Worker(BuildJob(config, planned.plan, planned.base), stub.cut)
        if name == "disturbed":
            with file_limit(limit), pytest.raises(OSError, match="File too large"):
                worker.run(0)
            assert [key for key in store.keys() if not key.startswith("plan")] == []
        worker.run(0)
        found[name] = builds.fingerprint(config.output)
    assert found["disturbed"] == found["undisturbed"]


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("full", ["output", "scratch"])
def test_a_build_on_a_full_disk(full: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "400k") as disk:
        output = disk / "dataset" if full == "output" else tmp_path / "dataset"
        scratch = disk / "scratch" if full == "scratch" else tmp_path / "scratch"
        if full == "scratch":
            scratch.mkdir()
            (scratch / "someone-elses").write_bytes(bytes(330_000))  # 70 kB left: less than most shards need
        command = builds.build_command(undisturbed.source, output, "run.cpus=2", f"run.scratch={scratch}")
        with builds.started(command, tmp_path / "log") as build:
            assert build.wait() in (1, 2)
            assert "o space left" in build.text()
        assert 0 < builds.committed(output) < 16
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        builds.build(command, tmp_path / "log")
        builds.assert_same_and_proven(output, undisturbed.fingerprint)


@pytest.mark.slow
@needs_root
def test_a_build_whose_output_becomes_read_only(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """In the middle, as a kernel does with a failing disk."""
    with ext4_disk(tmp_path / "disk", tmp_path / "image", 64) as disk:
        output = disk / "dataset"
        command = builds.build_command(undisturbed.source, output, "run.cpus=2")
        with builds.started(command, tmp_path / "log") as build:
            build.wait_until(lambda: output.exists() and builds.committed(output) >= 3)
            make_read_only(disk)
            assert build.wait() in (1, 2)
            assert "Read-only file system" in build.text()
            assert "Traceback" not in build.text()
        make_writable(disk, tmp_path / "image")
        assert 0 < builds.committed(output) < 16
        builds.build(command, tmp_path / "log")
        builds.assert_same_and_proven(output, undisturbed.fingerprint)

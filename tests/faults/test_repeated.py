"""What differs from run to run by nature (temporary names, the order of answers) must not reach the dataset."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.result import CutResult
from data_pipeline.cut.video import UndecodableVideo
from data_pipeline.store.open import open_store
from tests.faults import builds
from tests.tools.web import QuietHandler, serving


class _Quiet(QuietHandler, SimpleHTTPRequestHandler):
    """Serves the files of a folder."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server with two broken videos."""
    folder = tmp_path / "web"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"\0no video")  # plain text would be refused as a page
    with serving(functools.partial(_Quiet, directory=str(folder))) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("named", ["name", "as_posix"])
def test_the_record_of_a_broken_download_is_the_same_every_time(named: str, web: str, tmp_path: Path) -> None:
    def cut(path: Path, *, start: float | None = None, end: float | None = None) -> CutResult:
        said = path.name if named == "name" else path.as_posix()
        raise UndecodableVideo(f"{said}: not a video")

    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"video,caption\n{web}/a.mp4,one\n{web}/b.mp4,two\n")
    found = []
    for name in ("first", "second"):
        config = ShardsConfig(source=str(manifest), output=str(tmp_path / name), unit_rows=2)
        planned = make_plan(config, "broken", open_store(config.output))
        Worker(BuildJob(config, planned.plan, planned.base), cut).run(0)
        found.append(builds.fingerprint(config.output))
    assert found[0] == found[1]
    assert f"{web}/a.mp4: not a video" in (tmp_path / "first" / "units" / "000000.json").read_text()

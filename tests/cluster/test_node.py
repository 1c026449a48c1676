"""launch/cluster/node.py: the environment of every rank, signals, failures, and no survivors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cluster.node import rank_environment
from tests.cluster.host import REPOSITORY, wait_until
from tests.tools.ports import free_port

NODE = REPOSITORY / "launch" / "cluster" / "node.py"
PATIENCE_S = 200.0
OPTIONS = {"--nodes": "2", "--ranks": "2", "--master": "127.0.0.1", "--grace": "1"}


def start(script: Path, *options: str, index: str = "1", port: int = 29617) -> subprocess.Popen[str]:
    given = OPTIONS | {"--port": str(port)} | dict(zip(options[::2], options[1::2], strict=True))
    words = [word for pair in given.items() for word in pair]
    return subprocess.Popen(
        [sys.executable, NODE, *words, "--", script, "output=x", "--flag"],
        env={**os.environ, "JOB_COMPLETION_INDEX": index},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def write(path: Path, text: str) -> Path:
    path.write_text("import os, signal, sys, time\nlocal = os.environ['LOCAL_RANK']\n" + text)
    return path


def test_two_nodes_make_one_torch_process_group(tmp_path: Path) -> None:
    script = write(
        tmp_path / "ranks.py",
        "import torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "places = [None] * dist.get_world_size()\n"
        "dist.all_gather_object(places, (dist.get_rank(), int(local), os.environ['LOCAL_SIZE'], sys.argv[1:]))\n"
        "if dist.get_rank() == 0: print(places)\n"
        "dist.barrier()\n",
    )
    port = free_port()
    nodes = [start(script, "--ranks", "1", index=str(number), port=port) for number in (0, 1)]
    outputs = [node.communicate(timeout=PATIENCE_S)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert str([(rank, 0, "1", ["output=x", "--flag"]) for rank in (0, 1)]) in outputs[0]


def test_ranks_are_numbered_node_by_node() -> None:
    places = [rank_environment(3, node, 2, local, "node-0", 29500) for node in range(3) for local in range(2)]
    assert [place["RANK"] for place in places] == list("012345")
    assert [place["LOCAL_RANK"] for place in places] == list("010101")
    assert {(place["WORLD_SIZE"], place["LOCAL_SIZE"], place["MASTER_ADDR"]) for place in places} == {
        ("6", "2", "node-0")
    }


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_a_signal_reaches_every_rank_and_their_status_is_handed_on(tmp_path: Path, name: str) -> None:
    script = write(
        tmp_path / "saves.py",
        f"signal.signal(signal.{name}, lambda *_: (os.write(1, f'saved {{local}}\\n'.encode()), sys.exit(75)))\n"
        f"open({str(tmp_path)!r} + '/ready' + local, 'w').close()\n"
        "time.sleep(600)\n",
    )
    node = start(script, "--grace", "100")
    wait_until(lambda: all((tmp_path / f"ready{rank}").exists() for rank in (0, 1)), PATIENCE_S, "both ranks ready")
    node.send_signal(getattr(signal, name))
    output = node.communicate(timeout=PATIENCE_S)[0]
    assert node.returncode == 75
    assert all(f"saved {rank}" in output for rank in (0, 1))


EARLY = """
import os, signal, subprocess, sys
from launch.cluster import node

popen = subprocess.Popen

def told_meanwhile(*words, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return popen(*words, **options)

node.subprocess.Popen = told_meanwhile
sys.exit(node.main(sys.argv[1:]))
"""


def test_a_signal_before_the_first_rank_is_there_reaches_it(tmp_path: Path) -> None:
    script = write(tmp_path / "sleeps.py", "time.sleep(600)\n")
    place = ["--nodes", "1", "--node-rank", "0", "--ranks", "1", "--master", "127.0.0.1", "--", str(script)]
    node = subprocess.Popen([sys.executable, "-c", EARLY, *place], cwd=REPOSITORY)
    try:
        assert node.wait(PATIENCE_S) == 128 + signal.SIGTERM
    finally:
        node.kill()
        node.wait()


ENDING = """
import signal, sys
from launch.cluster import node

signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
status = node.main(sys.argv[1:])
print(*(signal.getsignal(number).name for number in node.FORWARDED), status)
"""


def test_nohup_holds_for_the_ranks_and_after_them_no_signal_hides_their_status(tmp_path: Path) -> None:
    ignored = "signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
    script = write(tmp_path / "asks.py", f"sys.exit(75 if {ignored} else 1)\n")
    place = ["--nodes", "1", "--node-rank", "0", "--ranks", "1", "--master", "127.0.0.1", "--", str(script)]
    command = [sys.executable, "-c", ENDING, *place]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.split() == ["SIG_IGN"] * 4 + ["75"], done.stderr


def test_ranks_that_hang_after_anothers_failure_are_killed(tmp_path: Path) -> None:
    script = write(
        tmp_path / "hangs.py",
        f"open({str(tmp_path)!r} + '/pid' + local, 'w').write(str(os.getpid()))\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"while local == '1' and not os.path.exists({str(tmp_path)!r} + '/hangs0'): time.sleep(0.01)\n"
        f"open({str(tmp_path)!r} + '/hangs' + local, 'w').close()\n"
        "sys.exit(7) if local == '1' else time.sleep(600)\n",
    )
    node = start(script)
    node.communicate(timeout=PATIENCE_S)
    assert node.returncode == 7
    assert not Path("/proc", (tmp_path / "pid0").read_text()).exists()


def test_no_rank_outlives_a_killed_starter(tmp_path: Path) -> None:
    script = write(
        tmp_path / "sleeps.py",
        f"open({str(tmp_path)!r} + '/pid' + local, 'w').write(str(os.getpid()))\ntime.sleep(600)\n",
    )
    node = start(script)
    files = [tmp_path / "pid0", tmp_path / "pid1"]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files), PATIENCE_S, "both ranks running")
    node.kill()
    node.communicate(timeout=PATIENCE_S)

    def gone(process: str) -> bool:
        try:
            return Path("/proc", process, "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    wait_until(lambda: all(gone(file.read_text()) for file in files), PATIENCE_S, "end of both ranks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--node-rank", "2"], "--node-rank 2 must lie in 0 ... 1 (--nodes 2)"),
        (["--node-rank", "-1"], "argument --node-rank: -1 must be a whole number of at least 0"),
        (["--ranks", "0"], "argument --ranks: 0 must be a whole number of at least 1"),
        (["--nodes", "two"], "argument --nodes: two must be a whole number of at least 1"),
        (["--grace", "nan"], "argument --grace: nan must be a number of seconds, 0 or more"),
        (["--port", "65536"], "argument --port: 65536 must be at most 65535"),
        (["--master", ""], "argument --master: is empty; name something, or leave it away"),
        (["--rank", "2"], "unrecognized arguments: --rank"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    node = start(write(tmp_path / "never.py", "print('started')\n"), *options)
    output = node.communicate(timeout=PATIENCE_S)[0]
    assert node.returncode == 2
    (line,) = output.splitlines()
    assert line == f"launch/cluster/node.py: {message}; --help says what is understood"

"""A Python that has imported what is slow to import, and forks one process for each script that a test runs.

    done = warm.run(["launch/train.py", "--config", "a.yaml"], cwd=ROOT, environment={...}, timeout=60)

torch and DeepSpeed take two processor seconds to import, and most of what tests ask of a script is refused sooner. The
forks are whole processes: their own working directory, environment, output, exit handlers and exit status. What they
do not show is what a script imports, and when: tests/launch/test_late_imports.py looks at that in processes of its own.
Forks of a process that has ended its imports and started no thread are what tests/trainer/worlds.py relies on, too.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MESSAGE = 1 << 20  # bytes of the longest request: mostly the environment
START_S = 120
IMPORTED = (
    *("numpy", "torch", "torch.utils.tensorboard", "safetensors.torch", "pyarrow", "pyarrow.parquet", "av", "boto3"),
    *("trainer.autoencoder_builder", "trainer.diffusion.builder", "trainer.diffusion.stored_latents"),
    # what the first optimizer and the first engine import: DeepSpeed's Muon is decorated with `torch.compile`
    *("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "deepspeed.runtime.zero.muon.muon_optimizer"),
)


def run(
    words: Sequence[str], *, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *words], capture_output=True, text=True)` would give.

    Args:
        words: a script's path, `-m` and a module, or `-c` and a program, and its words.
        environment: all of it; by default that of this process.

    Raises:
        subprocess.TimeoutExpired: after `timeout` seconds; the process is killed.
    """
    return _server(os.getpid()).run(list(words), cwd, dict(os.environ if environment is None else environment), timeout)


@cache
def _server(process: int) -> Server:
    """The one of this process: a fork of it has none."""
    ours, theirs = _pair()
    variables = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.tools.warm", str(theirs.fileno())],
        cwd=ROOT,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    server = Server(ours, started)
    atexit.register(server.close)
    return server


def fork_server() -> Server:
    """A server that is a fork of this process: a script that runs in a fork of the warm Python starts others so.

    In the processes that it forks this call does not come back: the script that was asked for runs, and they end.
    """
    ours, theirs = _pair()
    if os.fork() == 0:
        ours.close()
        _run(serve(theirs))
        raise SystemExit(0)
    theirs.close()
    return Server(ours, None)


def _pair() -> tuple[socket.socket, socket.socket]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE)
    return pair


class Server:
    """A warm Python, and this side of the socket to it. One script runs at a time.

    Args:
        connection: to the process that runs `serve`.
        started: that process, where it is no fork of this one; a fork ends with the socket.
    """

    def __init__(self, connection: socket.socket, started: subprocess.Popen[bytes] | None) -> None:
        self._ours, self._started = connection, started
        self._lock = threading.Lock()
        self._answer(START_S)

    def run(
        self, words: list[str], cwd: Path, environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        request = json.dumps({"words": words, "cwd": str(cwd), "environment": environment}).encode()
        assert len(request) < MESSAGE
        with self._lock, tempfile.TemporaryFile("w+b") as output, tempfile.TemporaryFile("w+b") as errors:
            socket.send_fds(self._ours, [request], [output.fileno(), errors.fileno()])
            process = self._answer(START_S)["started"]
            try:
                status = self._answer(timeout)["status"]
            except TimeoutError:
                os.killpg(process, signal.SIGKILL)
                self._answer(START_S)
                raise subprocess.TimeoutExpired(words, timeout, _text(output), _text(errors)) from None
            return subprocess.CompletedProcess(words, status, _text(output), _text(errors))

    def _answer(self, seconds: float) -> dict[str, int]:
        self._ours.settimeout(seconds)
        message = self._ours.recv(MESSAGE)
        assert message, f"the warm Python has ended{f' with {self._started.wait()}' if self._started else ''}"
        answer: dict[str, int] = json.loads(message)
        return answer

    def close(self) -> None:
        self._ours.close()
        if self._started is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._started.wait(5)
            self._started.kill()


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


def serve(connection: socket.socket) -> list[str]:
    """Fork a process for each request, until nobody asks any more; comes back only in a fork, with its words."""
    connection.send(json.dumps({}).encode())
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, MESSAGE, 2)
        if not request:
            os._exit(0)
        process = os.fork()
        if process == 0:
            connection.close()
            return become(json.loads(request), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(json.dumps({"started": process}).encode())
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        connection.send(json.dumps({"status": status}).encode())


def become(asked: dict[str, Any], descriptors: list[int]) -> list[str]:
    """Take over the place, environment and output that were asked for; the words."""
    os.setsid()
    for ours, wanted in zip(descriptors, (1, 2), strict=True):
        os.dup2(ours, wanted)
        os.close(ours)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    words: list[str] = asked["words"]
    return words


def as_main(words: list[str], ending: Ending) -> None:
    """Run a script or a module as Python does."""
    try:
        _run(words)
    except SystemExit as stop:
        ending.status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    except Exception:
        ending.status = 1
        raise
    ending.status = 0


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.path[0], sys.argv = os.getcwd(), words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.path[0], sys.argv = str(Path(words[0]).resolve().parent), words
        runpy.run_path(words[0], run_name="__main__")


class Ending:
    """The last exit handler: Python would take apart all that it has imported, which takes half a second."""

    status: int | None = None  # None: Python is to end as it does

    def __call__(self) -> None:
        if self.status is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.status)


def main() -> None:
    ending = Ending()
    atexit.register(ending)  # the first that is registered is called last
    gc.disable()  # the forks share what is imported here only as long as no collector looks at it
    import_deepspeed = importlib.import_module("trainer.engine.start_deepspeed").import_deepspeed
    import_deepspeed()
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    gc.enable()
    as_main(words, ending)


if __name__ == "__main__":
    main()

"""One host of a machine room (hosts.py): its namespaces, the commands that run inside, and ports that lead in."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CLONE_NEWNET = 0x40000000


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll ten times a second.

    Raises:
        TimeoutError: `what` did not happen within `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {timeout:g} s")
        time.sleep(0.1)


class Job:
    """A command running on a host, its output in a file."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def text(self) -> str:
        """Everything printed so far, stdout and stderr."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float) -> int:
        """The exit status; the output's tail goes into the error when it does not come."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"still running after {timeout:g} s:\n{self.text[-4000:]}") from error

    def succeed(self, timeout: float) -> str:
        """Wait for exit status 0 and return the output."""
        status = self.wait(timeout)
        assert status == 0, f"exit status {status}:\n{self.text[-6000:]}"
        return self.text

    def wait_for(self, words: str, timeout: float) -> None:
        """Wait until `words` have been printed; fail at once when the command ends without them."""

        def seen() -> bool:
            ended = self.process.poll() is not None
            if words in self.text:
                return True
            assert not ended, f"ended ({self.process.returncode}) without printing {words!r}:\n{self.text[-6000:]}"
            return False

        try:
            wait_until(seen, timeout, f"printing {words!r}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; so far:\n{self.text[-4000:]}") from error


class Host:
    """One booted host. `root` is its private scratch folder as the test sees it."""

    def __init__(self, name: str, address: str, root: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.address = address
        self.root = root
        self.environment = dict(environment)
        self._unshare: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._listeners: list[socket.socket] = []

    @property
    def pid(self) -> int:
        """The host's process 1, as numbered outside; 0 when it is down."""
        return self._pid

    def command(self, argv: Sequence[str | Path], cwd: Path = REPOSITORY) -> list[str]:
        """`argv` as a command for outside that runs inside."""
        words = [str(word) for word in argv]
        return ["nsenter", "--target", str(self._pid), "--all", "env", "-C", str(cwd), *words]

    def run(self, argv: Sequence[str | Path], timeout: float = 200, check: bool = True, cwd: Path = REPOSITORY) -> str:
        """Run to the end; stdout and stderr together."""
        done = subprocess.run(
            self.command(argv, cwd),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            text=True,
        )
        if check and done.returncode != 0:
            raise RuntimeError(
                f"{self.name}: {shlex.join(map(str, argv))} -> {done.returncode}:\n{done.stdout[-4000:]}"
            )
        return done.stdout

    def popen(self, argv: Sequence[str | Path], cwd: Path = REPOSITORY, log: str = "job.log") -> Job:
        """Start in the background; each call truncates `log` in the host's folder."""
        path = self.root / log
        with path.open("wb") as stream:
            process = subprocess.Popen(
                self.command(argv, cwd), env=self.environment, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL
            )
        return Job(process, path)

    def boot(self, script: str) -> None:
        """Make the namespaces, run `script` inside, which must end by becoming sshd in the foreground."""
        kinds = ["--net", "--mount", "--uts", "--pid", "--ipc", "--mount-proc"]
        # pdeathsig: unshare dies with pytest; kill-child: process 1, and with it the host, dies with unshare
        leash = ["setpriv", "--pdeathsig", "KILL", "unshare", *kinds, "--fork", "--kill-child=KILL"]
        with (self.root / "sshd.log").open("ab") as log:
            self._unshare = subprocess.Popen(
                [*leash, "sh", "-euc", script], env=self.environment, stdout=log, stderr=log
            )
        wait_until(lambda: self._children() != "", 120, f"{self.name}: process 1")
        self._pid = int(self._children())

    def _children(self) -> str:
        assert self._unshare is not None
        if self._unshare.poll() is not None:
            raise RuntimeError(f"{self.name} did not boot:\n{(self.root / 'sshd.log').read_text()[-2000:]}")
        return Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().strip()

    def forward(self, port: int) -> None:
        """Make this machine's own 127.0.0.1:`port` answer at 127.0.0.1:`port` inside the host."""
        made: list[socket.socket] = []

        def listen() -> None:  # a thread of its own: setns moves only the calling thread
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/proc/{self._pid}/ns/net") as namespace:
                if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    return
            made.append(socket.create_server(("127.0.0.1", port)))

        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
        if not made:
            raise RuntimeError(f"{self.name}: cannot listen on port {port} inside the host")
        self._listeners += made
        threading.Thread(target=_serve, args=(made[0], port), daemon=True).start()

    def kill(self) -> None:
        """Everything on the host dies at once, unsaid (SIGKILL to process 1), and its namespaces are freed."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._listeners.clear()
        if self._unshare is None:
            return
        if self._pid and self._unshare.poll() is None:
            os.kill(self._pid, signal.SIGKILL)  # unshare reaps it and follows
        else:
            self._unshare.kill()
        self._unshare.wait(120)
        self._unshare, self._pid = None, 0


def _serve(listener: socket.socket, port: int) -> None:
    while True:
        try:
            inside, _ = listener.accept()
        except OSError:  # closed by kill()
            return
        try:
            outside = socket.create_connection(("127.0.0.1", port), timeout=10)
        except OSError:
            inside.close()  # the caller inside sees what it would see outside: nobody answers
            continue
        for source, sink in ((inside, outside), (outside, inside)):
            source.settimeout(None)
            threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            end.close()

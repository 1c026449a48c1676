"""A machine room on one machine: hosts with their own network, processes, mounts and name, cabled to one switch.

Every host is a set of unnamed Linux namespaces whose process 1 is an sshd. Killing that process kills everything on the
host and frees its network and mounts, so nothing can outlive a test; the kernel kills it too should pytest die.
Interfaces are named eth0 and have addresses that exist only inside these namespaces: no packet can leave the machine.

    with MachineRoom(["node-0", "node-1"]) as room:
        job = room["node-0"].popen(["deepspeed", "--hostfile", room.hostfile, ...], cwd=REPOSITORY)
        room.cut_link("node-1"); room.kill_host("node-1"); room.boot("node-1")

Needs root, iproute2, util-linux, openssh and pdsh (`missing_tools`). The user's ~/.ssh is neither read nor written.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
NETWORK = "10.77.0"  # exists only inside the namespaces
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "pdsh", "/usr/sbin/sshd")
CLONE_NEWNET = 0x40000000


def missing_tools(*more: str) -> str:
    """Why hosts cannot be made here, in words for `pytest.skip`, or "" when they can."""
    if os.geteuid() != 0:
        return "needs root: network namespaces and sshd"
    absent = [tool for tool in (*TOOLS, *more) if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: iproute2 util-linux openssh-server pdsh ...)"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "namespaces are not permitted here"


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

    def run(self, argv: Sequence[str | Path], timeout: float = 60, check: bool = True, cwd: Path = REPOSITORY) -> str:
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
        wait_until(lambda: self._children() != "", 10, f"{self.name}: process 1")
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
        self._unshare.wait(20)
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


class MachineRoom:
    """Context manager: boots the hosts, cables them, gives every host ssh to every other, and clears all away.

    Args:
        names: host names; the first has address 10.77.0.1 and so on. They resolve on every host.
        environment: what a login on any host finds in its environment, over PATH and HOME.
        forward_ports: loopback ports of this machine to offer on every host's loopback (an S3 gateway).
    Attributes:
        folder: seen by all hosts alike, like a shared file system.
        disk: a folder of the same name but its own content on every host, like a node's own disk; empty after `boot`.
        hostfile: names every host with one slot.
    """

    def __init__(
        self, names: Sequence[str], environment: Mapping[str, str] | None = None, forward_ports: Sequence[int] = ()
    ) -> None:
        self.names = list(names)
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))  # short: Ray's sockets live below it
        self.disk = self.folder / "disk"
        self.hostfile = self.folder / "hostfile"
        self.forward_ports = list(forward_ports)
        self.home = self.folder / "home"
        binaries = Path(sys.executable).parent
        self.environment = {
            "PATH": f"{binaries}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }
        self.hosts: dict[str, Host] = {}
        self._switch: Host | None = None

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> MachineRoom:
        try:
            self._write_files()
            self._switch = Host("switch", "", self._host_folder("switch"), self.environment)
            self._switch.boot("exec sleep infinity")
            self._wait_ready(self._switch)
            self._ip(self._switch, "link add br0 type bridge", "link set br0 up")
            for name in self.names:
                self.boot(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill every host and remove the scratch folder; safe to call twice."""
        for host in [*self.hosts.values(), *([self._switch] if self._switch else [])]:
            host.kill()
        self.hosts.clear()
        self._switch = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def boot(self, name: str) -> None:
        """Start a host (again), with an empty disk, and plug it in."""
        assert self._switch is not None
        number = self.names.index(name)
        host = Host(name, f"{NETWORK}.{number + 1}", self._host_folder(name), self.environment)
        shutil.rmtree(host.root / "disk", ignore_errors=True)
        (host.root / "disk").mkdir()
        self.hosts[name] = host
        host.boot(self._boot_script(host))
        self._wait_ready(host)
        port = f"port{number}"
        self._ip(host, "link set lo up")
        hardware = f"02:00:00:00:00:{number + 1:02x}"  # the same after a reboot, as a real card's
        self._ip(self._switch, f"link add {port} type veth peer name eth0 address {hardware} netns {host.pid}")
        self._ip(self._switch, f"link set {port} master br0", f"link set {port} up")
        self._ip(host, f"addr add {host.address}/24 dev eth0", "link set eth0 up")
        for number_forwarded in self.forward_ports:
            host.forward(number_forwarded)

    def cut_link(self, name: str) -> None:
        """Unplug a host at the switch: packets vanish, no one is told."""
        assert self._switch is not None
        self._ip(self._switch, f"link set port{self.names.index(name)} nomaster")

    def restore_link(self, name: str) -> None:
        """Plug the host in again."""
        assert self._switch is not None
        self._ip(self._switch, f"link set port{self.names.index(name)} master br0")

    def kill_host(self, name: str) -> None:
        """Power off: the others get no farewell packet. `boot` brings it back with an empty disk."""
        assert self._switch is not None
        self.cut_link(name)
        self.hosts.pop(name).kill()
        self._ip(self._switch, f"link del port{self.names.index(name)}")  # the kernel would, some time later

    def write_deepspeed_env(self, **variables: str) -> None:
        """`~/.deepspeed_env`, the only way to hand other variables to the ranks on remote hosts."""
        lines = "".join(f"{key}={value}\n" for key, value in variables.items())
        (self.home / ".deepspeed_env").write_text(lines)

    def processes(self, name: str) -> list[str]:
        """Command lines running on a host, without its sshd and the `ps` that asks."""
        rows = self[name].run(["ps", "-eo", "args", "--no-headers"]).splitlines()
        return [row for row in rows if "sshd" not in row and not row.startswith("ps -eo")]

    def _host_folder(self, name: str) -> Path:
        folder = self.folder / "hosts" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _write_files(self) -> None:
        keys = self.folder / "ssh"
        for folder in (keys, self.home, self.disk):
            folder.mkdir()
        for key in ("user", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", keys / key], check=True)
        public = (keys / "host.pub").read_text()
        addresses = {name: f"{NETWORK}.{number + 1}" for number, name in enumerate(self.names)}
        known = [f"{','.join([name, address])} {public}" for name, address in addresses.items()]
        (keys / "known_hosts").write_text("".join([*known, f"127.0.0.1,localhost {public}"]))
        (keys / "authorized_keys").write_text((keys / "user.pub").read_text())
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in self.names))
        (self.folder / "hosts.txt").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items())
        )
        (keys / "client").write_text(SSH_CLIENT.format(keys=keys))
        login = " ".join(f'"{key}={value}"' for key, value in self.environment.items())
        (keys / "server").write_text(SSH_SERVER.format(keys=keys, login=login))

    def _boot_script(self, host: Host) -> str:
        keys = self.folder / "ssh"
        return "\n".join(
            [
                f"hostname {host.name}",
                f"mount --bind {host.root}/disk {self.disk}",
                f"mount --bind {self.folder}/hosts.txt /etc/hosts",
                f"mount --bind {keys}/client /etc/ssh/ssh_config",  # the system-wide file: ~/.ssh stays untouched
                "mount -t tmpfs tmpfs /dev/shm",
                "mount -t tmpfs tmpfs /run",
                "mkdir /run/sshd",
                f"exec /usr/sbin/sshd -D -e -f {keys}/server",
            ]
        )

    def _wait_ready(self, host: Host) -> None:
        """Until the boot script has run to its `exec`."""
        end = ("sshd", "sleep")
        wait_until(
            lambda: Path(f"/proc/{host.pid}/comm").read_text().strip() in end,
            20,
            f"{host.name}: end of the boot script",
        )

    def _ip(self, host: Host, *commands: str) -> None:
        for command in commands:
            subprocess.run(["nsenter", "--target", str(host.pid), "--net", "ip", *command.split()], check=True)


SSH_CLIENT = """\
Host *
    IdentityFile {keys}/user
    IdentitiesOnly yes
    UserKnownHostsFile {keys}/known_hosts
    StrictHostKeyChecking yes
    PasswordAuthentication no
    ServerAliveInterval 2
    ServerAliveCountMax 3
    LogLevel ERROR
"""

SSH_SERVER = """\
Port 22
HostKey {keys}/host
AuthorizedKeysFile {keys}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
ClientAliveInterval 2
ClientAliveCountMax 3
MaxStartups 100
SetEnv {login}
Subsystem sftp internal-sftp
"""

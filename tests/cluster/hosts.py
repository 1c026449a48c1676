"""A machine room on one machine: hosts with their own network, processes, mounts and name, cabled to one switch.

Every host is a set of unnamed Linux namespaces whose process 1 is an sshd. Killing that process kills everything on the
host and frees its network and mounts, so nothing can outlive a test; the kernel kills it too should pytest die.
Interfaces are named eth0 and have addresses that exist only inside these namespaces: no packet can leave the machine.

    with MachineRoom(["node-0", "node-1"]) as room:
        job = room["node-0"].popen(["deepspeed", "--hostfile", room.hostfile, ...])
        room.cut_link("node-1"); room.kill_host("node-1"); room.boot("node-1")

Needs root, iproute2, util-linux, openssh and pdsh (`missing_tools`). The user's ~/.ssh is neither read nor written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.cluster.host import Host, wait_until

NETWORK = "10.77.0"  # exists only inside the namespaces
TOOLS = ("ip", "unshare", "nsenter", "setpriv", "ssh", "ssh-keygen", "pdsh", "/usr/sbin/sshd")


def missing_tools(*more: str) -> str:
    """Why hosts cannot be made here, in words for `pytest.skip`, or "" when they can."""
    if os.geteuid() != 0:
        return "needs root: network namespaces and sshd"
    absent = [tool for tool in (*TOOLS, *more) if shutil.which(tool) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: iproute2 util-linux openssh-server pdsh ...)"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "namespaces are not permitted here"


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
            "TMPDIR": str(self.folder / "tmp"),  # what is killed clears nothing away
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
        for folder in (keys, self.home, self.disk, self.folder / "tmp"):
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
            120,
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

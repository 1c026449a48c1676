"""A SLURM cluster inside a machine room: munge and slurmctld on the first host, slurmd on every host."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from tests.cluster.host import REPOSITORY, Host, wait_until
from tests.cluster.hosts import MachineRoom

TOOLS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "/usr/sbin/munged")

# No cgroups and no accounting: what a container can do. cred_expire (at least 5) also is how long a requeued job waits.
CONFIG = """\
ClusterName=test
SlurmctldHost={head}
AuthType=auth/munge
AuthInfo=socket=/run/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={disk}/slurmd
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%h.log
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
SlurmdTimeout=15
MailProg=/bin/true
GresTypes=gpu
NodeName={nodes} CPUs=2 Gres=gpu:1 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=all Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=9 State=UP
"""


class Slurm:
    """Start it on a room's hosts; it ends with the room."""

    def __init__(self, room: MachineRoom) -> None:
        self.room = room
        self.folder = room.folder / "slurm"
        self.head = room[room.names[0]]

    def start(self) -> None:
        """Configure, start the daemons and wait until every node is idle."""
        for folder in (self.folder, self.folder / "state"):
            folder.mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        text = CONFIG.format(
            head=self.head.name, folder=self.folder, disk=self.room.disk, nodes=",".join(self.room.names)
        )
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")  # a device file that every machine has
        # munge must run before the controller can talk to anybody
        for host in self.room.hosts.values():
            self._start_munge(host)
        self.head.run(["slurmctld"])
        for host in self.room.hosts.values():
            host.run(["slurmd", "-N", host.name])
        self.wait_until_idle()

    def start_node(self, name: str) -> None:
        """Bring a host that was booted again back into the cluster."""
        host = self.room[name]
        self._start_munge(host)
        host.run(["slurmd", "-N", name])

    def wait_until_idle(self) -> None:
        """Every node is up and free."""
        wait_until(lambda: self.nodes() == ["idle"] * len(self.room.names), 200, "every SLURM node idle")

    def _start_munge(self, host: Host) -> None:
        host.environment["SLURM_CONF"] = str(self.folder / "slurm.conf")
        private = [f"--{name}-file=/run/munged.{name}" for name in ("pid", "log", "seed")]
        key = f"--key-file={self.folder}/munge.key"
        host.run(["/usr/sbin/munged", "--force", "--socket=/run/munge.socket", key, *private])

    def nodes(self) -> list[str]:
        """State of every node: idle, allocated, completing, down, ..."""
        return self.head.run(["sinfo", "--noheader", "--Node", "--partition=all", "--format=%T"], check=False).split()

    def submit(self, *words: str | Path, cwd: Path = REPOSITORY) -> int:
        """`sbatch WORDS` in `cwd`; returns the job's number."""
        answer = self.head.run(["sbatch", *words], cwd=cwd)
        found = re.search(r"Submitted batch job (\d+)", answer)
        assert found, answer
        return int(found.group(1))

    def state(self, job: int) -> dict[str, str]:
        """Fields of `scontrol show job`: JobState, Restarts, ExitCode, ..."""
        text = self.head.run(["scontrol", "show", "job", str(job)])
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

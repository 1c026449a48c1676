"""How much memory a process may still take, by the kernel and by the control groups of a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def available() -> int:
    """Bytes of memory that programs may still take, with what the kernel would give back, by /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable; it is no Linux, which this project needs")


def memory_groups(
    proc: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> Iterator[tuple[str, int]]:
    """The control groups that limit this process's memory, of either version, and how many bytes each has left."""
    for line in proc.read_text().splitlines() if proc.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = mount / "memory" if controllers else mount
        limit, used, cache = _V1 if controllers else _V2
        here = Path(path.lstrip("/"))
        for group in (here, *here.parents):
            folder = base / group
            with suppress(OSError):  # the root group has no limit, and a container may not see its own path
                text = (folder / limit).read_text().strip()
                if text == "max":
                    continue
                stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                left = int(text) - int((folder / used).read_text()) + int(stat[cache])
                yield str(folder), max(left, 0)


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")

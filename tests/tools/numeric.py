"""Run the numeric tests once for each instruction set that this processor has, on one thread and on two.

    python -m tests.tools.numeric [--isa default avx2 ...] [--quick]

Numbers must not depend on the processor, and one machine can play several: PyTorch's own kernels, oneDNN's and MKL's
each obey a variable. --quick leaves out the second thread and what trains with DeepSpeed. What the processor lacks is
skipped aloud.
"""

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class InstructionSet(NamedTuple):
    """Values of the variables, and the flags of /proc/cpuinfo that it needs."""

    aten: str
    onednn: str
    mkl: str
    needs: frozenset[str]


SETS = {
    "default": InstructionSet("default", "SSE41", "SSE4_2", frozenset({"sse4_1", "sse4_2"})),
    "avx2": InstructionSet("avx2", "AVX2", "AVX2", frozenset({"avx2", "fma"})),
    "avx512": InstructionSet(
        "avx512", "AVX512_CORE", "AVX512", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
    ),
}


def processor_flags(cpuinfo: str) -> set[str]:
    """What the text of /proc/cpuinfo says that every x86 core can do."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return set(next((value for name, _, value in lines if name.strip() == "flags"), "").split())


def runs(names: list[str], flags: set[str], quick: bool) -> list[tuple[str, int, set[str]]]:
    """(instruction set, threads, flags that the processor lacks for it) of each run."""
    threads = (1,) if quick else (1, 2)
    return [(name, count, set(SETS[name].needs - flags)) for name in names for count in threads]


def environment(name: str, threads: int) -> dict[str, str]:
    """Variables of one run."""
    chosen = SETS[name]
    return {
        "ATEN_CPU_CAPABILITY": chosen.aten,
        "ONEDNN_MAX_CPU_ISA": chosen.onednn,
        "MKL_ENABLE_INSTRUCTIONS": chosen.mkl,
        "OMP_NUM_THREADS": str(threads),
        "DS_ACCELERATOR": "cpu",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", nargs="+", choices=SETS, default=list(SETS), help="instruction sets")
    parser.add_argument("--quick", action="store_true", help="one thread, nothing that trains with DeepSpeed")
    arguments = parser.parse_args()
    cpuinfo = Path("/proc/cpuinfo")
    flags = processor_flags(cpuinfo.read_text()) if cpuinfo.is_file() else set()
    chosen = "numeric and not slow" + (" and not engines" if arguments.quick else "")
    said: list[str] = []
    failed = False
    for name, threads, lacking in runs(arguments.isa, flags, arguments.quick):
        title = f"{name}, {threads} thread{'s' * (threads > 1)}"
        if lacking:
            said.append(f"{title}: SKIPPED, this processor ({platform.machine()}) has no {', '.join(sorted(lacking))}")
            print(f"==== {said[-1]}", flush=True)
            continue
        variables = environment(name, threads)
        words = " ".join(f"{key}={value}" for key, value in variables.items())
        print(f"==== {title}: {words}", flush=True)
        # two processes for one thread each, one process for two
        workers = ["--numprocesses", "2", "--dist", "loadfile"] if threads == 1 else []
        command = [sys.executable, "-m", "pytest", "-q", "-m", chosen, *workers, "tests/model", "tests/trainer"]
        code = subprocess.run(command, env=os.environ | variables, check=False).returncode
        failed |= code != 0
        said.append(f"{title}: {'passed' if code == 0 else f'FAILED (pytest ended with {code})'}")
    print("\n".join(["==== numeric tests", *said]), flush=True)
    nothing = all("SKIPPED" in line for line in said)
    return 1 if failed or nothing else 0


if __name__ == "__main__":
    sys.exit(main())

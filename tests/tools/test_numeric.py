"""The choice of instruction sets, on the words of /proc/cpuinfo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.numeric import SETS, environment, processor_flags, runs

CPUINFO = Path("/proc/cpuinfo")
OLD = "processor\t: 0\nflags\t\t: fpu sse sse2 sse4_1 sse4_2 avx fma avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n"


def test_what_the_processor_lacks_is_named() -> None:
    found = runs(list(SETS), processor_flags(OLD), quick=False)
    assert [(name, threads) for name, threads, lacking in found if not lacking] == [
        *(("default", 1), ("default", 2), ("avx2", 1), ("avx2", 2)),
    ]
    assert found[-1] == ("avx512", 2, {"avx512f", "avx512bw", "avx512vl", "avx512dq"})
    assert all(lacking for _, _, lacking in runs(list(SETS), processor_flags("Features : fp asimd\n"), quick=True))


@pytest.mark.parametrize("name", ["default", "avx2", "avx512"])
def test_torch_obeys(name: str) -> None:
    flags = processor_flags(CPUINFO.read_text()) if CPUINFO.is_file() else set()
    if SETS[name].needs - flags:
        pytest.skip(f"this processor has no {name}")
    command = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"]
    done = subprocess.run(command, env=os.environ | environment(name, 1), check=True, capture_output=True, text=True)
    assert done.stdout.strip() == name.upper()

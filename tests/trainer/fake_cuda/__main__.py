"""A process that runs training steps on fake tensors on `cuda:0` (for tests/trainer/test_fake_cuda.py).

    python -m tests.trainer.fake_cuda LIBRARY < CASES > RESULTS

LIBRARY is backend.cpp, built. CASES is a JSON object: by name the fields of a `step.Case`. RESULTS has the fields of a
`step.Found` by the same names.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path


def load_backend(library: Path) -> None:
    """Give torch the false backend; before torch is imported, because torch looks for a backend only once."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    for file in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(Path(found.origin).parent / "lib" / file), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def main() -> None:
    load_backend(Path(sys.argv[1]))
    from tests.trainer.fake_cuda.step import Case, act_as_gpu, run

    act_as_gpu()
    results = {name: asdict(run(Case(**case))) for name, case in json.load(sys.stdin).items()}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()

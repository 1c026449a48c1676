"""No code of a checkpoint runs, whatever DeepSpeed loads: every stage, precision and offload, with DeepSpeed itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.attacks.engine_states import CASES, name_of
from tests.launch.scripts import ROOT


def test_a_hostile_state_is_refused_before_the_load_and_by_the_load_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.attacks.engine_states", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == {name_of(case) for case in CASES}
    for name, case in found.items():
        assert not case["complaints"], name
        assert case["equal"], name
        assert not case["ran"], name
        assert case["refused"].keys() == set(case["files"]), name
        assert any("optim_states" in file for file in case["files"]) == (not name.startswith("0-")), name
        for file, (first, second) in case["refused"].items():
            assert "posix.system" in first, (name, file, first)
            assert "\n" not in second, (name, file)

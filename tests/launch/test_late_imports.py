"""No script loads a library that computes before it has understood its words, and no settings module ever does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.launch.scripts import COMMANDS, ROOT

HEAVY = {
    "torch",
    "av",
    "ray",
    "deepspeed",
    "pyarrow",
    "boto3",
    "cv2",
    "scenedetect",
    "numpy",
    "PIL",
    "scipy",
    "transformers",
}
SETTINGS = [
    "model.config",
    *(
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for pattern in ("trainer/config/*.py", "data_pipeline/*/config.py", "trainer/estimate/options.py")
        for file in sorted(ROOT.glob(pattern))
        if file.name != "__init__.py"
    ),
]
LOADED = "; import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
AT_EXIT = (  # build_shards.py ends with os._exit, which would skip it
    "import atexit, json, os, runpy, sys; os._exit = sys.exit; "
    "atexit.register(lambda: print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))); "
)


def loaded_by(code: str, *words: str) -> set[str]:
    """Top-level modules in `sys.modules` at the exit of a Python that has run the code."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [["--help"], ["--no-such-option"]], ids=["help", "refused"])
@pytest.mark.parametrize("script", COMMANDS)
def test_help_and_a_refused_word_load_nothing_that_computes(script: str, words: list[str]) -> None:
    start = COMMANDS[script]
    run = f"run_module({start[1]!r}, " if start[0] == "-m" else f"run_path({start[0]!r}, "
    loaded = loaded_by(f"{AT_EXIT}runpy.{run}run_name='__main__')", *words)
    assert "argparse" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("module", SETTINGS)
def test_settings_load_nothing_that_computes(module: str) -> None:
    loaded = loaded_by(f"import {module}{LOADED}")
    assert module.partition(".")[0] in loaded
    assert loaded & HEAVY == set()

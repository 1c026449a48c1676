"""No script loads a library that computes before it has understood its words, and no settings module ever does."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

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
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for pattern in (
        "model/*config.py",
        "trainer/config/*.py",
        "data_pipeline/*/config.py",
        "trainer/estimate/options.py",
    )
    for file in sorted(ROOT.glob(pattern))
    if file.name != "__init__.py"
]
# Each case is a fork of a Python that has loaded all settings modules. The fork says by a pipe what it has loaded in
# the end; what the script prints is of no interest. build_shards.py ends with os._exit, which would skip the answer.
PROGRAM = """
import importlib, json, os, runpy, sys

def loaded():
    return sorted({name.partition(".")[0] for name in sys.modules})

def ended(words):
    sys.argv = words[1:] if words[0] == "-m" else words
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stop:
        return stop.code
    return "the script did not end by itself"

settings, cases = json.load(sys.stdin)
sys.path.insert(0, os.getcwd())
found = {}
for module in settings:
    importlib.import_module(module)
    found[module] = loaded()
print(json.dumps(found), flush=True)
leave, os._exit = os._exit, sys.exit
for words in cases:
    reader, writer = os.pipe()
    if os.fork() == 0:
        nothing = os.open(os.devnull, os.O_WRONLY)
        for output in (1, 2):
            os.dup2(nothing, output)
        status = ended(words)
        os.write(writer, json.dumps([status, loaded()]).encode())
        leave(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        print(answer.read().decode(), flush=True)
    os.wait()
"""
WORDS = {"--help": 0, "--no-such-option": 2}
"""What is asked of each script -> its exit status."""


@cache
def seen() -> tuple[dict[str, list[str]], list[tuple[Any, list[str]]]]:
    """The top-level modules that are loaded after each settings module; exit status and modules of each case."""
    cases = [[*start, word] for start in COMMANDS.values() for word in WORDS]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([SETTINGS, cases]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    settings, *scripts = map(json.loads, done.stdout.splitlines())
    assert len(scripts) == len(cases)
    return settings, scripts


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("script", COMMANDS)
def test_help_and_a_refused_word_load_nothing_that_computes(script: str, word: str) -> None:
    status, loaded = seen()[1][list(COMMANDS).index(script) * len(WORDS) + list(WORDS).index(word)]
    assert status == WORDS[word]
    assert "launch" in loaded
    assert set(loaded) & HEAVY == set()


@pytest.mark.parametrize("module", SETTINGS)
def test_settings_load_nothing_that_computes(module: str) -> None:
    """All are loaded into one process in this order, and the first that fails is the one to blame."""
    loaded = seen()[0][module]
    assert module.partition(".")[0] in loaded
    assert set(loaded) & HEAVY == set()

"""A fork of the warm Python against a Python of its own, which is the truth."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import warm

SAYS_ALL = """
import atexit, os, sys, threading, time
atexit.register(lambda: print("at exit", flush=True))
threading.Thread(target=lambda: (time.sleep(0.1), print("a thread ended", flush=True))).start()
place = (os.getcwd(), os.environ.get("SAID"), len(os.environ), sys.path[0])
print(__name__, sys.argv, *place, file=sys.stderr, flush=True)
print("unfinished", end="")
{end}
"""
ENDS = {
    "last line": "",
    "status": "sys.exit(7)",
    "true": "sys.exit(True)",
    "message": "sys.exit('a message')",
    "error": "raise ValueError('of a script')",
    "at once": "os._exit(3)",
    "signal": "os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_fork_does_and_says_what_a_python_of_its_own_does(tmp_path: Path, end: str) -> None:
    script = tmp_path / "says.py"
    script.write_text(SAYS_ALL.format(end=ENDS[end]))
    variables = os.environ | {"SAID": "x y"}
    words = [str(script), "a b", "c"]
    done = warm.run(words, cwd=tmp_path, environment=variables)
    wanted = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (wanted.returncode, wanted.stdout)
    first, *others = done.stderr.splitlines()
    expected, *expected_others = wanted.stderr.splitlines()
    assert first == expected
    assert others[-1:] == expected_others[-1:]  # of a traceback, whose other lines name the tool


def test_a_module_and_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "spoken.py").write_text("import sys; print(__name__, sys.argv[1:], __file__)")
    done = warm.run(["-m", "spoken", "x"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"__main__ ['x'] {tmp_path / 'spoken.py'}\n")


def test_a_script_that_does_not_end_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(3600)")
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        warm.run([str(script)], timeout=2)
    assert not Path(f"/proc/{int(str(caught.value.output))}").exists()
    assert warm.run(["-m", "this"]).returncode == 0

"""`constraints.txt` holds the versions that were tested: what setup.py asks for is among them, and allows them."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def test_every_line_is_a_name_and_a_version() -> None:
    """Neither hashes nor addresses, and no mark of a build that the package index does not have."""
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []
    names = [canonicalize_name(line.partition("==")[0]) for line in LINES]
    assert len(set(names)) == len(names)


def test_setup_allows_the_versions_that_were_tested() -> None:
    versions = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in LINES}
    call = next(
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setup"
    )
    keywords = {word.arg: word.value for word in call.keywords}
    asked = ast.literal_eval(keywords["install_requires"])
    extras = ast.literal_eval(keywords["extras_require"])
    for text in [*asked, *extras["dev"], *extras["demo"]]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is missing; add the version that was tested"
        assert requirement.specifier.contains(versions[name]), f"{text} does not allow {versions[name]}"


def test_another_torch_is_free_of_them() -> None:
    def commands(*words: str) -> str:
        made = subprocess.run(
            ["make", "--dry-run", "--always-make", "setup", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return made.stdout

    assert "--constraint constraints.txt" in commands()
    assert "constraint" not in commands("TORCH=2.11.0").replace("constraints.txt .venv", "")

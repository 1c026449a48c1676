"""Dependencies point one way: launch -> trainer -> {model, data_pipeline}. Read from syntax trees; nothing is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "model": {"data_pipeline", "trainer", "launch", "deepspeed", "ray", "argparse", "webdataset"},
    "data_pipeline": {"model", "trainer", "launch", "deepspeed", "argparse"},
    "trainer": {"launch"},
    "launch": set(),
}
RAY_LIVES_IN = {"data_pipeline/build/driver.py", "data_pipeline/build/ray_cluster.py"}


def imported_packages(file: Path) -> set[str]:
    """Top-level packages a file imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_import_only_what_is_below_them(package: str) -> None:
    for file in sorted((ROOT / package).rglob("*.py")):
        wrong = imported_packages(file) & FORBIDDEN[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_only_the_builder_knows_ray() -> None:
    users = [
        str(file.relative_to(ROOT))
        for package in FORBIDDEN
        for file in sorted((ROOT / package).rglob("*.py"))
        if "ray" in imported_packages(file)
    ]
    assert set(users) <= RAY_LIVES_IN


def test_scripts_are_pages() -> None:
    """A launch script parses, builds, calls one function and prints: no classes, and it fits on a few screens."""
    for file in sorted((ROOT / "launch").glob("*.py")):
        tree = ast.parse(file.read_text())
        assert len(file.read_text().splitlines()) <= 150, f"{file.name} holds logic that a test would want to reach"
        is_script = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        assert not is_script or not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree)), file.name

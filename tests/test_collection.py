"""Every test file is one that pytest finds by itself."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """Pytest passes over folders of some names, such as `build`, when it is not told otherwise."""
    patterns = pytestconfig.getini("norecursedirs")
    folders = {folder.name for file in TESTS.rglob("test_*.py") for folder in file.relative_to(TESTS).parents}
    assert {"build", "launch"} <= folders
    assert not [name for name in folders if name and any(fnmatch(name, pattern) for pattern in patterns)]

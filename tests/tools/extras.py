"""Tests that need a library of an extra: skipped with the reason where it is missing.

`pytest.importorskip` would import the library in each process that collects tests; transformers and diffusers take
seconds.
"""

from __future__ import annotations

import importlib.util

import pytest


def needs(library: str, extra: str) -> pytest.MarkDecorator:
    """A mark for tests that import `library`, which `pip install -e '.[EXTRA]'` brings."""
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is missing: pip install -e '.[{extra}]'")


NEEDS_TRANSFORMERS = needs("transformers", "text")
NEEDS_DIFFUSERS = needs("diffusers", "diffusers")

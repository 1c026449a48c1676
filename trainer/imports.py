"""Imports that Python's garbage collector leaves alone.

What torch and DeepSpeed import is a million objects that live as long as the process. The collector would go over
them again and again while they are imported, in every full collection during the training, and once more at the end.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What is imported inside is never looked at by the collector, which rests meanwhile; all that exists joins it."""
    at_work = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if at_work:
            gc.enable()

"""Python's garbage collector, which a training runs at its log steps and at no other moment.

A training step leaves no reference cycles (tests/trainer/test_two_ranks.py counts them), so that the collector has
nothing to do in it. Run by itself, it would look at all modules and weights again and again, while the device waits
for its next kernel.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_on_request() -> Iterator[None]:
    """Inside, the collector runs only where it is called, and never looks at what exists already.

    Processes that are forked inside begin with the collector off, and must switch it on if they are to have it.
    """
    was_on, others_froze = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not others_froze:  # otherwise what they froze would be looked at again, too
            gc.unfreeze()
        if was_on:
            gc.enable()


def collect() -> None:
    """Free what only reference cycles keep alive."""
    gc.collect()

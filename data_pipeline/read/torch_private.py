"""The one private part of torch that reading uses: ending the workers of a DataLoader's iterator now.

In public, torch ends the workers only when the iterator is collected as garbage. That may come late, because the
traceback of an error on its way holds the iterator, and until then torch reports each of these workers as dead.
`tests/data_pipeline/read/test_worker_pool.py` fails when torch changes this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def end_workers(results: Iterator[Any]) -> None:
    """End the workers of an iterator of a DataLoader that has some, and forget them. Waits for each, in turn."""
    results._shutdown_workers()  # type: ignore[attr-defined]

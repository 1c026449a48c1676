"""An iterator that a thread runs ahead: its items and its error arrive, and it is closed where it ran."""

import threading
from collections.abc import Iterator

import pytest

from trainer.evaluation.read_ahead import prefetched


def test_the_items_arrive_in_order_and_the_error_after_the_last_of_them() -> None:
    def items() -> Iterator[int]:
        yield from range(7)
        raise OSError("the disk has failed")

    seen: list[int] = []
    with pytest.raises(OSError, match="the disk has failed"):
        seen.extend(prefetched(items(), depth=2))
    assert seen == list(range(7))


@pytest.mark.parametrize("taken", [1, 3])
def test_whoever_leaves_off_leaves_an_iterator_that_its_own_thread_has_closed(taken: int) -> None:
    """A video that the iterator has open is closed then, and not when memory is looked through."""
    closed: list[str] = []

    def items() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            closed.append(threading.current_thread().name)

    source = items()  # as long as this name holds it, Python does not close it by itself
    ahead = prefetched(source, depth=1)
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    ahead.close()
    assert closed == ["prefetch"]
    assert next(source, None) is None

"""When Python's garbage collector runs, seen from objects that only it can free."""

import gc
import weakref

import pytest

from trainer.garbage import collect, collected_on_request


class Knot:
    """An object that holds itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


def knots(count: int) -> weakref.WeakSet[Knot]:
    """Knots that nobody else holds."""
    made: weakref.WeakSet[Knot] = weakref.WeakSet()
    for _ in range(count):
        made.add(Knot())
    return made


def test_inside_the_collector_runs_only_where_it_is_called() -> None:
    count = 2 * gc.get_threshold()[0]  # so many new objects start the collector where it is on
    with collected_on_request():
        made = knots(count)
        assert len(made) == count
        collect()
        assert len(made) == 0
    assert gc.isenabled()
    assert len(knots(count)) < count


def test_what_existed_before_is_not_looked_at() -> None:
    gc.collect()
    made = knots(1)
    held = [*made]
    with collected_on_request():
        held.clear()
        collect()
        assert len(made) == 1


def test_an_error_switches_the_collector_on_again() -> None:
    with pytest.raises(KeyError), collected_on_request():
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collected_on_request():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

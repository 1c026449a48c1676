"""Imports that the garbage collector leaves alone; tests/trainer/curve.py looks at what a rank imports."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from trainer.engine.start_deepspeed import lasting


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.enable()


def test_what_is_made_inside_is_left_alone_and_what_comes_later_is_collected() -> None:
    with lasting():
        assert not gc.isenabled()
        inside = weakref.ref(_Cycle())
    later = weakref.ref(_Cycle())
    gc.collect()
    assert gc.isenabled()
    assert inside() is not None
    assert later() is None


def test_a_collector_that_was_at_rest_stays_at_rest_and_an_import_that_fails_changes_nothing() -> None:
    gc.disable()
    with lasting():
        pass
    assert not gc.isenabled()
    gc.enable()
    with pytest.raises(ImportError), lasting():
        raise ImportError
    assert gc.isenabled()

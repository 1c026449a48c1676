"""Pictures that pass through memory of two processes: the same bytes, in turns, and no reader loses its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.cut.shared_pictures import SLOTS, PictureReader, PictureWriter
from tests.tools.memory_limit import memory_limit


@pytest.fixture
def reader() -> Iterator[PictureReader]:
    memory = PictureReader()
    yield memory
    memory.close()


def pictures() -> list[NDArray[np.uint8]]:
    """Twenty pictures of growing and shrinking sizes, some of them views that are not contiguous."""
    random = np.random.default_rng(0)
    sizes = [(3, 5), (3, 5), (3, 5), (3, 5), (3, 5), (40, 30), (2, 2), (2, 2), (40, 30), (90, 70)] * 2
    whole = [random.integers(0, 256, (height, width + 3, 3), dtype=np.uint8) for height, width in sizes]
    return [picture[:, 3:] if number % 3 else picture for number, picture in enumerate(whole)]


def test_pictures_arrive_as_they_were_also_when_the_reader_is_slow(reader: PictureReader) -> None:
    """The reader copies a picture only when the writer waits for it; then its place must still hold it."""
    unread: list[tuple[int, tuple[int, ...]]] = []
    arrived: list[NDArray[np.uint8]] = []

    def take() -> None:
        at, shape = unread.pop(0)
        arrived.append(reader.picture(at, *shape[:2]).copy())
        writer.unread -= 1

    writer = PictureWriter(reader.descriptor, take)
    for picture in pictures():
        at = writer.put(picture)
        unread.append((at, picture.shape))
        assert 1 <= len(unread) <= SLOTS
    while unread:
        take()
    assert len(arrived) == 20
    assert all(np.array_equal(got, sent) for got, sent in zip(arrived, pictures(), strict=True))


def test_a_writer_cannot_take_the_memory_away(reader: PictureReader) -> None:
    writer = PictureWriter(reader.descriptor, lambda: None)
    picture = reader.picture(writer.put(np.full((50, 40, 3), 7, np.uint8)), 50, 40)
    with pytest.raises(PermissionError):
        os.ftruncate(reader.descriptor, 0)
    assert (picture == 7).all()


@pytest.mark.parametrize("place", [(-1, 2, 2), (0, 51, 40), (0, -50, -40), (0, 0, 10), (50 * 40 * 3 * SLOTS, 1, 1)])
def test_a_picture_that_is_not_there_is_no_picture(place: tuple[int, int, int], reader: PictureReader) -> None:
    PictureWriter(reader.descriptor, lambda: None).put(np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(EOFError):
        reader.picture(*place)


def test_what_one_of_the_processes_has_no_memory_for_is_said_so(reader: PictureReader) -> None:
    large = np.zeros((4000, 4000, 3), np.uint8)
    writer = PictureWriter(reader.descriptor, lambda: None)
    with memory_limit(64 * 2**20), pytest.raises(MemoryError):
        writer.put(large)
    at = writer.put(large)
    with memory_limit(64 * 2**20), pytest.raises(MemoryError):
        reader.picture(at, 4000, 4000)
    assert reader.picture(at, 4000, 4000).shape == large.shape

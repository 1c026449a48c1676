"""Views from a child process are those of this process, and a decoder that dies costs one clip."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from fractions import Fraction
from threading import Thread
from typing import Any

import numpy as np
import pytest

from data_pipeline.dataset.tar import ClipError
from data_pipeline.outside.child import Child
from data_pipeline.read.clip_decoder import View, ViewDecoder
from data_pipeline.read.isolated_decoder import IsolatedViewDecoder
from tests.data_pipeline.dataset.tiny_dataset import make_clips

CLIP = make_clips(1, frames=(11,))[0].video
FPS = Fraction(8)
VIEWS = (View(0, 1, 0, 0, 32, flip=False), View(3, 2, 2, 4, 24, flip=True))


@pytest.fixture(scope="module")
def child() -> Iterator[IsolatedViewDecoder]:
    decoder = IsolatedViewDecoder(FPS)
    yield decoder
    decoder.close()


def decoded(decoder: ViewDecoder | IsolatedViewDecoder, view: View, data: bytes = CLIP) -> np.ndarray:
    out = np.empty((3, 4, 32, 32), np.uint8)
    decoder.decode(data, view, out)
    return out


@pytest.mark.parametrize("view", VIEWS)
def test_the_child_gives_what_this_process_gives(view: View, child: IsolatedViewDecoder) -> None:
    assert np.array_equal(decoded(child, view), decoded(ViewDecoder(FPS), view))


def test_a_clip_that_cannot_be_decoded_is_refused_in_the_same_words(child: IsolatedViewDecoder) -> None:
    late = View(9, 1, 0, 0, 32, flip=False)
    for view, data in ((late, CLIP), (VIEWS[0], CLIP[: len(CLIP) // 2]), (VIEWS[0], b"")):
        with pytest.raises(ClipError) as ours:
            decoded(ViewDecoder(FPS), view, data)
        pid = child.pid
        with pytest.raises(ClipError) as theirs:
            decoded(child, view, data)
        assert str(theirs.value) == str(ours.value)
        assert child.pid == pid or pid is None
    assert np.array_equal(decoded(child, VIEWS[0]), decoded(ViewDecoder(FPS), VIEWS[0]))


def test_a_decoder_that_dies_costs_its_clip_and_another_one_serves(
    child: IsolatedViewDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decoded(child, VIEWS[0])
    pid, send = child.pid, Child.send
    assert pid is not None

    def send_and_kill(to: Child, *what: Any) -> None:
        send(to, *what)
        os.kill(pid, signal.SIGKILL)

    os.kill(pid, signal.SIGSTOP)  # so that it has not answered when it dies
    monkeypatch.setattr(Child, "send", send_and_kill)
    with pytest.raises(ClipError, match=r"^the decoder's process ended: killed by SIGKILL$"):
        decoded(child, VIEWS[0])
    monkeypatch.undo()
    assert child.pid is None
    assert np.array_equal(decoded(child, VIEWS[0]), expected)


def test_a_decoder_that_dies_between_two_clips_costs_none(child: IsolatedViewDecoder) -> None:
    expected = decoded(child, VIEWS[0])
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSEGV)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert np.array_equal(decoded(child, VIEWS[0]), expected)


def test_each_thread_has_a_child_of_its_own(child: IsolatedViewDecoder) -> None:
    decoded(child, VIEWS[0])
    found: list[tuple[int | None, np.ndarray]] = []

    def work() -> None:
        picture = decoded(child, VIEWS[1])
        found.append((child.pid, picture))
        child.close()

    other = Thread(target=work)
    other.start()
    other.join(60)
    ((pid, picture),) = found
    assert pid not in (None, child.pid)
    assert np.array_equal(picture, decoded(child, VIEWS[1]))

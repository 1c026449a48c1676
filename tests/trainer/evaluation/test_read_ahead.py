"""An iterator that a thread runs ahead: its items and its error arrive, and it is closed where it ran."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_pipeline.cut.videos import numbered_video
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from trainer.evaluation.found_videos import find_videos
from trainer.evaluation.read_ahead import prefetched
from trainer.evaluation.shard_source import ShardSource
from trainer.evaluation.sources import VideoFiles, Window


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


def processes() -> set[int]:
    """The processes that the threads of this one have started."""
    files = Path("/proc/self/task").glob("*/children")
    return {int(word) for file in files for word in file.read_text().split()}


@pytest.mark.parametrize("kind", ["videos", "dataset"])
def test_whoever_leaves_off_does_not_wait_for_a_decoder_that_hangs(kind: str, tmp_path: Path) -> None:
    """The decoder stops behind the first window, and the thread waits for it: a decoder hangs for ten minutes."""
    source: VideoFiles | ShardSource
    if kind == "videos":  # the second window needs many more frames than are decoded ahead
        source, ready = VideoFiles(find_videos(numbered_video(tmp_path / "v.mp4", 130)), 60, 32), 1
    else:  # four clips are read together
        data = write_dataset(tmp_path / "data", split_into_shards(make_clips(6, frames=(4,), split="val"), [6]))
        source, ready = ShardSource(str(data), "val", 4, 32), 4
    before, hanging = processes(), threading.Event()

    def windows() -> Iterator[Window]:
        for number, window in enumerate(source.windows()):
            yield window
            if not number:
                (decoder,) = processes() - before
                os.kill(decoder, signal.SIGSTOP)
                hanging.set()

    ahead = prefetched(windows(), depth=100, interrupt=source.interrupt)
    for _ in range(ready):
        next(ahead)
    assert hanging.wait(60)
    closing = threading.Thread(target=ahead.close, daemon=True)
    closing.start()
    closing.join(60)
    left = processes() - before
    for decoder in left:
        os.kill(decoder, signal.SIGKILL)
    assert not closing.is_alive()
    assert not left

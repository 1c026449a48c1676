"""Finds the videos under a prefix of a store, with the captions beside them. One listing, and one request a caption."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa

from data_pipeline.source.folder import CAPTION_BYTES, Found, is_caption_table, is_video
from data_pipeline.source.left_out import LeftOut
from data_pipeline.source.raw_rows import Column, MappedRows
from data_pipeline.source.tables import numbers
from data_pipeline.source.twins import same_name
from data_pipeline.store.base import Store

_ROWS = 1_024  # of one batch: their captions are read together
_READERS = 16  # requests at a time


def remote_rows(store: Store, named: Collection[str], left_out: LeftOut) -> Iterator[MappedRows]:
    """The videos of a store in the order of their keys, but those that are named already.

    Args:
        store: opened at the prefix.
        named: keys to leave out.
        left_out: counts what is not taken.
    Raises:
        ValueError: the store does not list its keys in order, as S3 promises.
        OSError: the store failed.
    """
    twins = {same_name(name) for name in named if not name.isascii()}
    found = (pair for pair in with_captions(store.keys(), left_out) if pair[0] not in named)
    first = 1
    with ThreadPoolExecutor(_READERS, thread_name_prefix="captions") as pool:
        while chunk := list(islice(found, _ROWS)):
            rows = list(pool.map(lambda pair: _row(store, *pair), chunk))
            left_out.videos += len(rows)
            videos, captions, problems = zip(*rows, strict=True)
            for video in videos:
                if not video.isascii() and same_name(video) in twins:
                    left_out.twins.add(video)
            yield MappedRows(
                {"video": Column(pa.array(videos, pa.string())), "caption": Column(pa.array(captions, pa.string()))},
                {},
                numbers(first, len(rows)),
                {position: problem for position, problem in enumerate(problems) if problem},
            )
            first += len(rows)


@dataclass
class _Stem:
    """A key without its suffix, `a` of `a.mp4`, and what the listing has of that name."""

    name: str
    videos: int = 0
    text: bool = False  # whether it has a caption


def with_captions(keys: Iterator[str], left_out: LeftOut) -> Iterator[tuple[str, str | None]]:
    """Each video with the key of its caption, in the order of the videos.

    The caption of `a.mp4` is `a.txt`. In an ordered listing only keys that begin with `a.` stand between the two, so
    memory holds no more videos than these, and as many names as a key has dots.

    Args:
        keys: in the order of their UTF-8 bytes.
        left_out: counts the keys that are neither.
    """
    waiting: deque[tuple[str, _Stem]] = deque()  # videos whose caption may still come
    begun: list[_Stem] = []  # names with which the newest key begins, the shortest first: more of each may still come
    before = b""
    for key in keys:
        if key.encode() < before:
            raise ValueError(
                f"the store lists {key!r} behind a later key; take a bucket that lists in order, or write a manifest"
            )
        before = key.encode()
        while begun and not key.startswith(f"{begun[-1].name}."):
            left_out.captions += _is_alone(begun.pop())
        while waiting and (waiting[0][1].text or f"{waiting[0][1].name}.txt".encode() < before):
            yield _with_text(*waiting.popleft())
        folder, _, file = key.rpartition("/")
        if is_video(file):
            stem = _stem_of(key, begun)
            stem.videos += 1
            waiting.append((key, stem))
        elif file.endswith(".txt") and not file.startswith("."):
            _stem_of(key, begun).text = True
        elif file and (folder or not is_caption_table(file)):
            left_out.file(key)
    yield from (_with_text(*item) for item in waiting)
    left_out.captions += sum(map(_is_alone, begun))


def _stem_of(key: str, begun: list[_Stem]) -> _Stem:
    """The stem of a key with a suffix. It is the last one of those begun, because no longer one begins the key."""
    name = key[: key.rfind(".")]
    if not begun or begun[-1].name != name:
        begun.append(_Stem(name))
    return begun[-1]


def _is_alone(stem: _Stem) -> bool:
    """Whether there is a caption and no video of it."""
    return stem.text and not stem.videos


def _with_text(video: str, stem: _Stem) -> tuple[str, str | None]:
    return video, f"{stem.name}.txt" if stem.text else None


def _row(store: Store, video: str, text: str | None) -> Found:
    if text is None:
        return video, None, ""
    try:
        data = store.read(text, 0, CAPTION_BYTES + 1)
        if len(data) > CAPTION_BYTES:
            return video, None, f"caption file {text} is longer than {CAPTION_BYTES} bytes; shorten it"
        return video, data.decode().removeprefix("\ufeff"), ""
    except FileNotFoundError:
        return video, None, ""
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return video, None, f"caption file {text} line {line} is not UTF-8; save the file as UTF-8"
    except ValueError as error:
        return video, None, f"caption file {text} cannot be read: {error}"

"""Finds the videos under a prefix of a store, with the captions beside them. One listing, and one request a caption."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
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
            left_out.twins += [video for video, _, _ in rows if not video.isascii() and same_name(video) in twins]
            videos, captions, problems = zip(*rows, strict=True)
            yield MappedRows(
                {"video": Column(pa.array(videos, pa.string())), "caption": Column(pa.array(captions, pa.string()))},
                {},
                numbers(first, len(rows)),
                {position: problem for position, problem in enumerate(problems) if problem},
            )
            first += len(rows)


def with_captions(keys: Iterator[str], left_out: LeftOut) -> Iterator[tuple[str, str | None]]:
    """Each video with the key of its caption, in the order of the videos, in memory that does not grow.

    The caption of `a.mp4` is `a.txt`. In an ordered listing only keys that begin with `a.` stand between the two.

    Args:
        keys: in the order of their UTF-8 bytes.
        left_out: counts the keys that are neither.
    """
    waiting: deque[tuple[str, str]] = deque()  # videos whose caption may still come, each with its name without suffix
    texts: dict[str, bool] = {}  # names of captions, to which videos may still come -> whether one has
    before = b""
    for key in keys:
        if key.encode() < before:
            raise ValueError(
                f"the store lists {key!r} behind a later key; take a bucket that lists in order, or write a manifest"
            )
        before = key.encode()
        while waiting and f"{waiting[0][1]}.txt".encode() < before:
            yield _with_text(*waiting.popleft(), texts)
        for name in [name for name in texts if not key.startswith(f"{name}.")]:
            left_out.captions += not texts[name] and all(name != other for _, other in waiting)
            if all(name != other for _, other in waiting):
                del texts[name]
        folder, _, file = key.rpartition("/")
        name = key[: key.rfind(".")] if "." in file else key
        if is_video(file):
            waiting.append((key, name))
        elif file.endswith(".txt") and not file.startswith("."):
            texts[name] = False
        elif file and (folder or not is_caption_table(file)):
            left_out.file(key)
    while waiting:
        yield _with_text(*waiting.popleft(), texts)
    left_out.captions += sum(not used for used in texts.values())


def _with_text(video: str, name: str, texts: dict[str, bool]) -> tuple[str, str | None]:
    if name not in texts:
        return video, None
    texts[name] = True
    return video, f"{name}.txt"


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

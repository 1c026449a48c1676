"""Captions beside the videos of a listing, against a search of all keys at once."""

from __future__ import annotations

import random
from pathlib import PurePosixPath
from typing import Any

import pytest

from data_pipeline.source.left_out import LeftOut
from data_pipeline.source.names import VIDEO_SUFFIXES
from data_pipeline.source.remote_folder import with_captions


def ordered(keys: set[str]) -> list[str]:
    return sorted(keys, key=str.encode)


def expected(keys: set[str]) -> list[tuple[str, str | None]]:
    pairs = []
    for key in ordered(keys):
        path = PurePosixPath(key)
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
            text = str(path.with_suffix(".txt"))
            pairs.append((key, text if text in keys else None))
    return pairs


@pytest.mark.parametrize("seed", range(20))
def test_every_video_of_a_listing_has_its_caption(seed: int) -> None:
    draw = random.Random(seed)
    names = ["a", "a.b", "a b", "a-", "a.", "é", "z", "d/a", "d/a.b", ".h", "a/a"]
    suffixes = [".mp4", ".webm", ".ts", ".txt", ".MKV", "", ".vob"]
    keys = {draw.choice(names) + draw.choice(suffixes) for _ in range(draw.randrange(60))}
    left_out = LeftOut()
    found = list(with_captions(iter(ordered(keys)), left_out))
    assert sorted(found) == sorted(expected(keys))
    used = {text for _, text in found if text}
    texts = {key for key in keys if key.endswith(".txt") and not key.rpartition("/")[2].startswith(".")}
    assert left_out.captions == len(texts - used)
    hidden = {key for key in keys if key.rpartition("/")[2].startswith(".")}
    assert left_out.hidden == len(hidden)
    assert len(found) + len(texts) + len(hidden) + sum(left_out.unknown.values()) == len(keys)


class Key(str):
    """A key that counts how often somebody compares its beginning."""

    compared = 0

    def startswith(self, *prefix: Any) -> bool:
        Key.compared += 1
        return super().startswith(*prefix)


def test_a_video_with_many_others_before_its_caption_costs_no_more_than_they_do() -> None:
    """`v.txt` may come behind all of them, so all of them wait."""
    names = [f"v.p{number:03}" for number in range(200)]
    keys = ordered({"v.mp4", *(f"{name}.{suffix}" for name in names for suffix in ("mp4", "txt"))})
    Key.compared = 0
    found = list(with_captions(iter(map(Key, keys)), LeftOut()))
    assert found == [("v.mp4", None), *((f"{name}.mp4", f"{name}.txt") for name in names)]
    assert Key.compared <= 4 * len(keys)


def test_a_listing_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lists 'a\.txt' behind a later key"):
        list(with_captions(iter(["b.mp4", "a.txt"]), LeftOut()))

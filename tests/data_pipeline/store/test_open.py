"""The ways to write a place, against what RFC 8089 means by a file address."""

from __future__ import annotations

import os

import pytest

from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import absolute_place, open_store, plain_place, split_location


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("file:///a/b", "/a/b"),
        ("file:/a/b", "/a/b"),
        ("FILE:///a/b", "/a/b"),
        ("file:///a%20b?c#d", "/a%20b?c#d"),  # nothing is decoded, because a path may hold these characters
        ("/a/b", "/a/b"),
        ("a/b", "a/b"),
        ("./file:x", "./file:x"),
        ("files:x", "files:x"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("", ""),
    ],
)
def test_a_file_address_is_its_path_and_all_else_stays(text: str, plain: str) -> None:
    assert plain_place(text) == plain
    kind, *parts = split_location(text)
    assert (kind, parts) == (("s3", ["bucket", "a"]) if text.startswith("s3") else ("file", [plain, ""]))


@pytest.mark.parametrize("text", ["file:a", "file:", "file://", "file://host/a", "file:////a", "file://a"])
def test_an_address_of_no_file_here_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        plain_place(text, "init_from")
    assert str(refused.value) == f"init_from={text!r} is no file of this machine; write file:///PATH or the plain path"
    with pytest.raises(ValueError, match="is no file of this machine"):
        split_location(text)


def test_a_nul_byte_is_refused_and_a_password_is_not_shown() -> None:
    with pytest.raises(ValueError, match=r"^data\.shards='a\\x00b' holds a NUL byte, which no path can; remove it$"):
        plain_place("a\0b", "data.shards")
    with pytest.raises(ValueError, match="is no file of this machine") as refused:
        plain_place("file://user:hush@host/a")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("prefix", ["a#b/c", "a?b", "a b\tc", "%23"])
def test_a_prefix_on_s3_may_hold_every_character(prefix: str) -> None:
    """Otherwise `s3://bucket/run#1` and `s3://bucket/run#2` would be one place."""
    assert split_location(f"s3://bucket/{prefix}") == ("s3", "bucket", prefix)
    assert open_store(f"S3://bucket/{prefix}/").uri("key") == f"s3://bucket/{prefix}/key"


@pytest.mark.parametrize("place", ["~/a", "~no_such_user/a", "a", "./~/a"])
def test_a_place_in_a_home_is_the_same_for_every_process(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell, the name of a user that this machine does not have is a name like any other."""
    monkeypatch.setenv("HOME", "/homes/me")
    expected = "/homes/me/a" if place == "~/a" else f"{os.getcwd()}/{place.removeprefix('./')}"
    store = open_store(place)
    assert isinstance(store, LocalStore)
    assert absolute_place(place) == str(store.root) == expected

"""The ways to write a place, against what RFC 8089 means by a file address."""

from __future__ import annotations

import pytest

from data_pipeline.store.open import plain_place, split_location


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

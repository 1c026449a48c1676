"""Which captions a latent sample has, from the bytes of its `.json` and its `.txt`."""

from __future__ import annotations

import json

import pytest

from data_pipeline.dataset.captions import caption_digest, captions_of
from data_pipeline.dataset.tar import ClipError


def described(captions: object) -> bytes:
    return json.dumps({"clip": {"id": "x", "extra": {"captions": captions, "licence": "free"}}}).encode()


@pytest.mark.parametrize(
    ("description", "caption", "expected"),
    [
        (b'{"clip":{"id":"x"}}', "a cat", ("a cat",)),
        (b'{"clip":{"id":"x"}}', "", ("",)),
        (b'{"clip":{"id":"captions","label":"\\"captions\\""}}', "a cat", ("a cat",)),
        (b'{"clip":{"extra":{"notes":{"captions":["no"]}}}}', "a cat", ("a cat",)),
        (described(["a dog", "a cat", "un v\u00e9lo"]), "a cat", ("a cat", "a dog", "un v\u00e9lo")),
        (described(["a dog", " ", ""]), "", ("a dog",)),
        (described([]), " \n", ("",)),
    ],
)
def test_the_captions_of_a_sample(description: bytes, caption: str, expected: tuple[str, ...]) -> None:
    assert captions_of(description, caption.encode()) == expected


@pytest.mark.parametrize(
    ("description", "caption", "message"),
    [
        (described("a dog"), b"a cat", "^has a column captions that is no list of texts; give it as a list"),
        (described(["a dog", 3]), b"a cat", "^has a column captions that is no list of texts"),
        (described(["\ud800"]), b"a cat", "has a caption that is not UTF-8"),
        (b"{}", b"\xff", "has a caption that is not UTF-8"),
        (b'{"captions"', b"a cat", "has a description that cannot be read"),
    ],
)
def test_what_is_no_caption_is_refused(description: bytes, caption: bytes, message: str) -> None:
    with pytest.raises(ClipError, match=message):
        captions_of(description, caption)


def test_the_digest_is_sha256_of_utf8() -> None:
    """The second value is that of `printf 'é' | sha256sum`."""
    assert caption_digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert caption_digest("\u00e9") == "4a99557e4033c3539de2eb65472017cad5f9557f7a0625a09f1c3f6e2ba69c4c"

"""Text files in other encodings: the place of the first byte that is not UTF-8, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.store.text import read_lines, read_text


@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [
        (b"caf\xe9", 1, "0xe9"),
        (b"\n\r\na\xc3\xa9\nna\xefve\n\xff", 4, "0xef"),
        ("\u00e9t\u00e9\n".encode("utf-16"), 1, "0xff"),
        (b"a\n" * 100_000 + b"\x80", 100_001, "0x80"),
        (b"cut off \xe2\x82", 1, "0xe2"),  # the first two of the three bytes of a euro sign
    ],
)
def test_the_file_the_line_and_the_byte_are_named(tmp_path: Path, content: bytes, line: int, byte: str) -> None:
    file = tmp_path / "some.txt"
    file.write_bytes(content)
    said = f"line {line} holds the byte {byte}, which is not UTF-8; save the file as UTF-8"
    for read in (read_text, read_lines):
        with pytest.raises(ValueError) as refused:
            read(file)
        assert str(refused.value) == f"{file} {said}"
    with pytest.raises(ValueError) as refused:
        read_text(file, "caption file")
    assert str(refused.value) == f"caption file {said}"


def test_lines_have_neither_ends_nor_the_byte_order_mark_and_a_text_has_all(tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_bytes(b"\xef\xbb\xbfv\xc3\xa9lo\r\n\r\nlast")
    assert read_lines(file) == ["v\u00e9lo", "", "last"]
    assert read_text(file)[0] == "\ufeff"

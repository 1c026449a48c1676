"""launch/take_down.py on a dataset of real videos: what is left in the shards, and lists that cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch import take_down, verify_shards
from tests.launch.dataset_files import clips_of, content


@pytest.fixture
def shards(real_shards: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(real_shards, tmp_path / "shards")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
def test_the_sources_of_the_list_are_gone_and_all_others_stay(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mark: bytes
) -> None:
    before = clips_of(shards)
    assert set(before) == {"bikes", "again", "v\u00e9lo"}
    ids = tmp_path / "ids.txt"
    ids.write_bytes(mark + "v\u00e9lo\n".encode())
    assert take_down.main(["--shards", str(shards), "--ids", str(ids)]) == 0
    assert "taken down: 1 source; python launch/verify_shards.py" in capsys.readouterr().out
    assert clips_of(shards) == {name: count for name, count in before.items() if name != "v\u00e9lo"}
    assert verify_shards.main(["--shards", str(shards)]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "bikes\nv\u00e9lo\n".encode("latin-1"),
            "line 2 holds the byte 0xe9, which is not UTF-8; save the file as UTF-8",
        ),
        ("bikes\n".encode("utf-16"), "line 1 holds the byte 0xff, which is not UTF-8; save the file as UTF-8"),
        (b"\n", "holds no id; write one source id a line"),
        (b"bikes\ntrucks\n", "trucks"),
    ],
    ids=["latin-1", "utf-16", "empty", "unknown"],
)
def test_a_list_that_is_wrong_is_named_and_nothing_is_taken_down(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes, message: str
) -> None:
    before = content(shards)
    ids = tmp_path / "ids.txt"
    ids.write_bytes(text)
    assert take_down.main(["--shards", str(shards), "--ids", str(ids)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert str(ids) in line or "trucks" in line
    assert content(shards) == before

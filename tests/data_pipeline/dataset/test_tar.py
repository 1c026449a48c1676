"""Archives against Python's and, where it is installed, GNU tar: same members, normalised headers, true offsets."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from data_pipeline.dataset.tar import TarWriter, encoded, members

FILES = [("a-0001.json", b"{}"), ("a-0001.mp4", bytes(range(256)) * 5), ("a-0001.txt", b""), ("b.txt", b"x" * 512)]


def test_members_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    writer = TarWriter(path)
    assert writer.append(encoded(FILES[:3])) == 0
    second = writer.append(encoded(FILES[3:]))
    digest = writer.close()
    data = path.read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    assert writer.bytes == len(data)
    with tarfile.open(path) as archive:
        infos = archive.getmembers()
        assert [(info.name, archive.extractfile(info).read()) for info in infos] == FILES  # type: ignore[union-attr]
        for info in infos:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
    assert second == infos[3].offset
    with path.open("rb") as file:
        found = list(members(file))
    assert [(m.name, m.header, m.offset, m.size) for m in found] == [
        (info.name, info.offset, info.offset_data, info.size) for info in infos
    ]


def test_a_name_that_does_not_fit_and_a_damaged_header_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name is too long"):
        encoded([("x" * 101, b"")])
    data = bytearray(encoded(FILES[:1]) + bytes(1024))
    data[10] ^= 1
    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open("rb") as file, pytest.raises(tarfile.TarError):
        list(members(file))

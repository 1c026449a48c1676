"""Folders and manifests of strangers: no file of the operator gets into the dataset, and nothing is waited for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.build.scratch import scratch_folder
from data_pipeline.outside.regular import NotRegular, open_regular
from data_pipeline.source.config import SourcesConfig, WrongRows
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.source.manifest import ReadOptions, open_manifest
from data_pipeline.store.private_folder import private_folder
from tests.tools.sockets import leave_socket

SECRET = "aws_secret_access_key = SECRET-OF-THE-OPERATOR"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stranger's folder with one video, beside a file of the operator."""
    (tmp_path / "credentials").write_text(SECRET)
    (tmp_path / "own.csv").write_text(f"video,caption\na.mp4,{SECRET}\n")
    found = tmp_path / "videos"
    found.mkdir()
    (found / "a.mp4").write_bytes(b"x")
    return found


def rows(source: Path, *, untrusted: bool = True, record: bool = True) -> tuple[list[dict[str, Any]], str]:
    """The rows of a source, and what was said of it."""
    said: list[str] = []
    kind = WrongRows.RECORD if record else WrongRows.STRICT
    options = ReadOptions(rows=kind, untrusted=untrusted, say=said.append)
    return [row for batch in open_manifest(source, options).batches for row in batch.to_pylist()], "\n".join(said)


def lay(path: Path, kind: str) -> None:
    """Put something there that is no file of its own."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        leave_socket(path)
    elif kind == "link to itself":
        path.symlink_to(path.name)
    else:
        path.symlink_to(kind)


OUT = ["../credentials", "../videos/../credentials", "/etc/passwd", "sub/../../credentials", "inner"]
NO_FILES = ["pipe", "folder", "socket", "/dev/zero", "/dev/tty", "link to itself"]


@pytest.mark.parametrize("kind", [*OUT, *NO_FILES])
def test_a_caption_that_is_no_file_of_the_folder_is_refused(kind: str, folder: Path) -> None:
    if kind == "inner":
        (folder / "inner").symlink_to("../credentials")  # a link to a link
    if kind.startswith("sub"):
        (folder / "sub").mkdir()
    lay(folder / "a.txt", kind)
    (row,) = rows(folder)[0]
    assert row["problem"].startswith("caption file a.txt "), row
    assert row["caption"] is None
    assert SECRET not in str(row)
    with pytest.raises(ValueError, match=r"caption file a\.txt "):
        rows(folder, record=False)


@pytest.mark.parametrize("kind", NO_FILES[:-1])
def test_a_caption_that_is_no_file_is_refused_from_friends_as_well(kind: str, folder: Path) -> None:
    lay(folder / "a.txt", kind)
    (row,) = rows(folder, untrusted=False)[0]
    assert "a.txt is a" in row["problem"]


@pytest.mark.parametrize("table", ["captions.csv", "captions.tsv", "captions.jsonl", "captions.parquet"])
def test_a_table_that_leads_out_of_the_folder_is_refused(table: str, folder: Path) -> None:
    (folder / table).symlink_to("../own.csv")
    with pytest.raises(ValueError, match=rf"{table} lies outside its folder"):
        rows(folder)


@pytest.mark.parametrize("table", ["captions.csv", "captions.parquet", "m.csv"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "/dev/zero"])
def test_a_table_that_is_no_file_is_refused(table: str, kind: str, folder: Path) -> None:
    (folder / "a.mp4").unlink()
    lay(folder / table, kind)
    with pytest.raises(ValueError, match=rf"{table} (is a|lies outside)|no videos in"):
        rows(folder)


@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/zero"])
def test_a_manifest_that_is_no_file_is_refused(kind: str, folder: Path) -> None:
    lay(folder / "m.csv", kind)
    with pytest.raises(ValueError, match=r"m\.csv (is a|lies outside)"):
        rows(folder / "m.csv")


def test_a_manifest_that_is_a_link_out_of_its_folder_is_refused(folder: Path) -> None:
    (folder / "m.csv").symlink_to("../own.csv")
    with pytest.raises(ValueError, match=r"m\.csv lies outside"):
        rows(folder / "m.csv")
    assert rows(folder / "m.csv", untrusted=False)[0]


def test_links_of_videos_and_folders_are_not_followed_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "private.mp4").write_bytes(b"x")
    (folder / "b.mp4").symlink_to("../more/private.mp4")
    (folder / "more").symlink_to("../more")
    found, said = rows(folder)
    assert [row["video"] for row in found] == ["a.mp4", "b.mp4"]
    assert "linked folders not followed" in said
    sources = Sources(str(folder), SourcesConfig(untrusted=True))
    for video in ("b.mp4", "more/private.mp4", "../more/private.mp4", str(tmp_path / "more/private.mp4")):
        with pytest.raises(SourceProblem) as problem:
            sources.fetch(video, tmp_path)
        assert problem.value.error == "forbidden"


def test_links_that_leave_the_folder_of_a_friend_are_followed_and_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "c.mp4").write_bytes(b"x")
    (folder / "b.mp4").symlink_to("../more/c.mp4")
    (folder / "b.txt").symlink_to("../credentials")
    (folder / "inside.mp4").symlink_to("a.mp4")
    (folder / "more").symlink_to("../more")
    found, said = rows(folder, untrusted=False)
    assert [row["video"] for row in found] == ["a.mp4", "b.mp4", "inside.mp4", "more/c.mp4"]
    assert "links followed that leave the folder: 3 ('b.mp4', 'b.txt', 'more')" in said


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "/dev/zero"])
def test_a_video_that_is_no_file_is_the_fate_of_its_row(kind: str, folder: Path, tmp_path: Path) -> None:
    lay(folder / "v.mp4", kind)
    with pytest.raises(SourceProblem) as problem:
        Sources(str(folder), SourcesConfig()).fetch("v.mp4", tmp_path)
    assert problem.value.error == "not_a_file"


def test_a_caption_of_terabytes_is_not_read(folder: Path) -> None:
    with (folder / "a.txt").open("wb") as file:
        file.truncate(1 << 40)
    (row,) = rows(folder)[0]
    assert row["problem"] == "caption file a.txt is longer than 1048576 bytes; shorten it"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A writer that waits at a pipe for a reader goes on waiting."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotRegular, match="is a FIFO, not a regular file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):  # nobody has opened the other end
        os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)


@pytest.mark.parametrize("kind", ["pipe", "socket", "/dev/zero", "folder", "../credentials"])
def test_locks_that_others_left_in_a_shared_folder_are_passed_by(kind: str, tmp_path: Path, folder: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "vidtwin-unit-x").mkdir(parents=True)
    lay(shared / "vidtwin-unit-x" / ".lock", kind)
    with scratch_folder(str(shared)) as scratch:
        assert scratch.parent == shared
    assert (shared / "vidtwin-unit-x").exists(), "what is not known to be abandoned stays"


def test_a_linked_unit_folder_is_not_followed(tmp_path: Path, folder: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (folder / ".lock").write_text("")
    (shared / "vidtwin-unit-x").symlink_to(folder)
    with scratch_folder(str(shared)):
        pass
    assert (folder / "a.mp4").exists()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_the_folder_of_a_user_is_closed_whatever_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        made = private_folder("scratch", base=str(tmp_path))
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in (made.parent, made)] == ["0o700", "0o700"]


def test_an_open_folder_of_this_user_is_closed(tmp_path: Path) -> None:
    (tmp_path / f"vidtwin-{os.getuid()}").mkdir()
    (tmp_path / f"vidtwin-{os.getuid()}").chmod(0o777)
    assert private_folder(base=str(tmp_path)).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["pipe", "../credentials", "videos"])
def test_what_another_user_has_put_in_its_place_is_refused(kind: str, tmp_path: Path, folder: Path) -> None:
    lay(tmp_path / f"vidtwin-{os.getuid()}", kind)
    with pytest.raises(ValueError, match="is no folder of this user"):
        private_folder(base=str(tmp_path))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "vidtwin-0"
    taken.mkdir(mode=0o700)
    os.chown(taken, 65534, 65534)
    with pytest.raises(ValueError, match="is no folder of this user"):
        private_folder(base=str(tmp_path))

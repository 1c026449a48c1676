"""No row and no caption goes away without a word: what the file system and the formats say is the truth."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.source.config import SourcesConfig, WrongRows
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.source.left_out import LeftOut
from data_pipeline.source.manifest import ReadOptions, open_manifest

CASES = Path(__file__).parent / "cases"
NFC, NFD = (unicodedata.normalize(form, "é.mp4") for form in ("NFC", "NFD"))


def read(source: Path, **options: Any) -> tuple[list[tuple[str, str | None]], str]:
    """Video and caption of each row, and what the user is told."""
    said: list[str] = []
    manifest = open_manifest(source, ReadOptions(say=said.append, **options))
    rows = [row for batch in manifest.batches for row in batch.to_pylist()]
    return [(row["video"], row["caption"]) for row in rows], "\n".join(said)


def videos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_tsv_has_no_quotes() -> None:
    """Each line of the file is a row, as `cut -f` has it."""
    path = CASES / "quote_tsv_merge2.tsv"
    lines = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    rows, said = read(path)
    assert rows == [(video, caption) for video, caption in lines]
    assert len(rows) == 4
    assert "double quotes" not in said, "no value stands between two"


def test_a_tsv_written_with_quotes_is_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    path.write_bytes(b'\xef\xbb\xbfvideo\tcaption\r\na.mp4\t"he said ""hi"""\r\n\r\nb.mp4\tplain\r\n')
    rows, said = read(path)
    assert rows == [("a.mp4", '"he said ""hi"""'), ("b.mp4", "plain")]
    assert "m.tsv: 1 value in double quotes kept with the quotes, because TSV has no quoting" in said
    path.write_text("video\tcaption\na.mp4\ttwo\tparts\n")
    with pytest.raises(ValueError, match=r"m\.tsv row 1: line 2 has 3 fields, the header 2; a tab or a line end"):
        read(path)


def test_a_row_without_a_video_hides_no_file_whose_name_cannot_be_used(tmp_path: Path) -> None:
    videos(tmp_path, "a.mp4", os.fsdecode(b"\xff.mp4"))
    (tmp_path / "captions.csv").write_text("video,caption\na.mp4,one\n,two\n")
    manifest = open_manifest(tmp_path, ReadOptions(rows=WrongRows.RECORD))
    problems = [row["problem"] for batch in manifest.batches for row in batch.to_pylist()]
    assert problems == ["", "video is missing", "file name b'\\xff.mp4' is not UTF-8; rename the file"]


def test_linked_folders_are_searched_once_and_loops_are_named(tmp_path: Path) -> None:
    root = videos(tmp_path / "root", "a/1.mp4", "z/2.mp4")
    outside = videos(tmp_path / "outside", "3.mp4", "deep/4.mp4")
    (root / "b_link").symlink_to(outside)
    (root / "c_same").symlink_to(outside)
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "above").symlink_to(tmp_path)
    (root / "a0_real").symlink_to(root / "z")
    (root / "self").symlink_to("self")
    rows, said = read(root)
    real = sorted(path.stat().st_ino for path in tmp_path.rglob("*.mp4") if not path.is_symlink())
    assert sorted((root / video).stat().st_ino for video, _ in rows) == real, "every file once"
    assert ("z/2.mp4", None) in rows, "a real folder keeps its own name"
    for name in ("'a/up'", "'a0_real'", "'c_same'"):
        assert name in said.partition("linked folders left out that are searched already: ")[2]
    trusted_less, said = read(root, untrusted=True)
    assert [video for video, _ in trusted_less] == ["a/1.mp4", "z/2.mp4"]
    assert "linked folders not followed, as sources.untrusted=true asks: 5 (" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    root = videos(tmp_path / "root", "a/1.mp4", "b/2.mp4")
    (root / "b").chmod(0)
    try:
        with pytest.raises(ValueError, match=r"folder .*/b cannot be read: Permission denied; make it readable"):
            read(root)
    finally:
        (root / "b").chmod(0o755)


def test_a_folder_that_cannot_be_read_is_refused_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every folder can be read, so the system's answer is made up here."""
    root = videos(tmp_path / "root", "a/1.mp4", "b/2.mp4")
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if path == root / "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ValueError, match=r"folder .*/b cannot be read: Permission denied; make it readable"):
        read(root)
    rows, said = read(root, rows=WrongRows.RECORD)
    assert rows == [("a/1.mp4", None)]
    assert "folders that cannot be read: 1 ('b')" in said


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path: Path) -> None:
    names = [
        "a.mp4",
        "b.vob",
        "c.vob",
        "d.asf",
        "plain",
        ".hidden.mp4",
        "._a.mp4",
        "a.txt",
        "alone.txt",
        "captions.csv",
    ]
    root = videos(tmp_path / "root", *names)
    (root / "captions.csv").write_text("video,caption\nb.vob,of b\n")
    rows, said = read(root)
    assert rows == [("b.vob", "of b"), ("a.mp4", "x")]
    assert "1 video found" in said
    assert "files left out that are not named like a video: 4 (.vob 2, .asf 1, no suffix 1)" in said
    assert "hidden files left out: 2" in said
    assert ".txt files without a video: 1" in said


@pytest.mark.parametrize("name", [" a.mp4", "\u3000a.mp4", "a .mp4"])
def test_names_are_not_trimmed(name: str, tmp_path: Path) -> None:
    videos(tmp_path, name)
    path = tmp_path / "m.csv"
    path.write_text(f"video,caption\n{name}, a caption \n", encoding="utf-8")
    (row,), said = read(path)
    assert row == (name, "a caption")
    assert ("m.csv: 1 video with white space at an end" in said) == (name != "a .mp4")
    assert Sources(str(tmp_path), SourcesConfig()).fetch(row[0], tmp_path).read_bytes() == b"x"


def test_white_space_around_addresses_is_no_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("video,caption\n https://host/a.mp4 ,x\n s3://bucket/dir/ ,y\n")
    rows, _ = read(path)
    assert [video for video, _ in rows] == ["https://host/a.mp4", "s3://bucket/dir/ "], "an S3 key may end in a space"


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    root = videos(tmp_path / "root", "a.mp4")
    (root / "a.txt").write_text("\ufeffa dog runs\n", encoding="utf-8")
    assert read(root)[0] == [("a.mp4", "a dog runs")]


@pytest.mark.parametrize(("file", "written"), [(NFD, NFC), (NFC, NFD)])
def test_twins_of_names_are_found(file: str, written: str, tmp_path: Path) -> None:
    root = videos(tmp_path / "root", f"ü/{file}")
    folder = unicodedata.normalize("NFD", "ü")
    (root / "captions.csv").write_text(f"video,caption\n{folder}/{written},of it\n", encoding="utf-8")
    rows, _ = read(root)
    assert rows == [(f"{folder}/{written}", "of it")], "one row, with the name as it is written"
    assert Sources(str(root), SourcesConfig()).fetch(rows[0][0], tmp_path).read_bytes() == b"x"
    beside = videos(tmp_path / "beside", file)
    (beside / written.replace(".mp4", ".txt")).write_text("beside")
    assert read(beside)[0] == [(file, "beside")]


def test_two_files_that_are_twins_are_two_rows(tmp_path: Path) -> None:
    root = videos(tmp_path / "root", NFC, NFD)
    (root / "captions.csv").write_text(f"video,caption\n{NFC},of it\n", encoding="utf-8")
    assert read(root)[0] == [(NFC, "of it"), (NFD, None)]


def test_a_twin_that_is_a_link_out_of_the_folder_is_refused_to_strangers(tmp_path: Path) -> None:
    root = videos(tmp_path / "root", "a.mp4")
    (root / NFD).symlink_to(videos(tmp_path, "secret.mp4") / "secret.mp4")
    with pytest.raises(SourceProblem, match="lies outside the manifest's folder"):
        Sources(str(root), SourcesConfig(untrusted=True)).fetch(NFC, tmp_path)


def test_absolute_names_of_a_caption_table_are_those_of_the_folder(tmp_path: Path) -> None:
    root = videos(tmp_path / "root", "a.mp4", "b/c.mp4")
    (tmp_path / "link").symlink_to(root)
    (root / "captions.csv").write_text(f"video,caption\n{tmp_path}/link/a.mp4,x\n{root}/b/../b/c.mp4,y\n")
    rows, _ = read(tmp_path / "link")
    assert [caption for _, caption in rows] == ["x", "y"]
    rows, _ = read(root)
    assert [caption for _, caption in rows] == ["x", "y"]


def test_a_table_may_name_a_video_through_any_link(tmp_path: Path) -> None:
    """One file is one row, so that it is not in two splits."""
    root = videos(tmp_path / "root", "z/2.mp4")
    outside = videos(tmp_path / "outside", "3.mp4")
    for name, target in {"a": outside, "b": outside, "y": root / "z"}.items():
        (root / name).symlink_to(target)
    (root / "captions.csv").write_text("video,caption\nb/3.mp4,x\ny/2.mp4,y\n")
    assert read(root)[0] == [("b/3.mp4", "x"), ("y/2.mp4", "y")]


@pytest.mark.parametrize("needs_caption", [True, False])
def test_a_caption_column_that_is_not_named_exactly_is_refused(needs_caption: bool, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"header_space\.csv has no column 'caption'; its columns are 'video', ' caption'"
    ):
        read(CASES / "header_space.csv", needs_caption=needs_caption)
    path = tmp_path / "m.csv"
    path.write_text("video,Caption\na.mp4,x\n")
    with pytest.raises(ValueError, match=r"nearest: 'Caption'; pass columns\.caption=Caption"):
        read(path, needs_caption=needs_caption)
    path.write_text("video,views\na.mp4,3\n")
    if needs_caption:
        with pytest.raises(ValueError, match=r"or caption\.required=false for a dataset without captions"):
            read(path, needs_caption=True)
    else:
        assert read(path)[0] == [("a.mp4", None)]


def test_of_ten_million_links_a_search_keeps_five_names() -> None:
    left_out = LeftOut()
    assert not left_out.outside
    for number in range(1000):
        left_out.outside.add(f"{number}.mp4")
    assert left_out.outside.first == [f"{number}.mp4" for number in range(5)]
    assert left_out.line("x").endswith(
        "links followed that leave the folder: 1000 ('0.mp4', '1.mp4', '2.mp4', '3.mp4', '4.mp4', ...)"
    )

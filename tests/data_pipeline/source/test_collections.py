"""Manifests of made-up collections, row by row as written by hand, read back by the builder's own reader."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.source.collections import class_in_words, mcl_jcv, ucf101
from data_pipeline.source.manifest import open_manifest
from launch import make_manifest

EYES = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
EYES_2 = "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi"
HANDS = "HandstandPushups/v_HandStandPushups_g01_c02.avi"  # the collection itself spells the two differently
YOYO = "YoYo/v_YoYo_g25_c05.avi"


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Four videos of three classes, and the lists of split 2, some lines ending with CR LF as in the release."""
    for name in (EYES, EYES_2, HANDS, YOYO):
        path = tmp_path / "UCF-101" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"avi")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 ApplyEyeMakeup\r\n37 HandstandPushups\r\n101 YoYo\r\n")
    (lists / "trainlist02.txt").write_bytes(f"{EYES_2} 1\r\n{HANDS} 37\r\n".encode())
    (lists / "testlist02.txt").write_text(f"{YOYO}\n{EYES}\n\n")
    return tmp_path


def make(collection: Path, *words: str) -> int:
    folders = ["--source", str(collection / "UCF-101"), "--lists", str(collection / "lists")]
    return make_manifest.main(["ucf101", *folders, "--split", "2", *words])


def test_ucf101_rows(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = collection / "ucf.csv"
    assert make(collection, "--output", str(target)) == 0
    assert "4 rows (test 2, train 2)" in capsys.readouterr().out
    with target.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", "video", "caption", "label", "split", "caption_from"],
            [EYES, f"UCF-101/{EYES}", "apply eye makeup", "ApplyEyeMakeup", "test", "class name"],
            [EYES_2, f"UCF-101/{EYES_2}", "apply eye makeup", "ApplyEyeMakeup", "train", "class name"],
            [HANDS, f"UCF-101/{HANDS}", "handstand pushups", "HandstandPushups", "train", "class name"],
            [YOYO, f"UCF-101/{YOYO}", "yo yo", "YoYo", "test", "class name"],
        ]


def test_the_builder_reads_both_formats_alike_and_finds_the_videos(collection: Path) -> None:
    read = []
    for name in ("ucf.csv", "ucf.parquet"):
        assert make(collection, "--output", str(collection / name)) == 0
        manifest = open_manifest(collection / name)
        read.append([row for batch in manifest.batches for row in batch.to_pylist()])
        assert all(Path(manifest.base, row["video"]).read_bytes() == b"avi" for row in read[-1])
    assert read[0] == read[1]
    assert [row["split"] for row in read[0]] == ["test", "train", "train", "test"]
    assert {json.loads(row["extra"])["caption_from"] for row in read[0]} == {"class name"}
    assert pq.read_table(collection / "ucf.parquet").num_rows == 4


def test_a_manifest_elsewhere_names_the_videos_absolutely_under_the_same_ids(collection: Path) -> None:
    rows = ucf101(collection / "UCF-101", collection / "lists", 2, collection / "manifests" / "ucf.csv")
    assert [row.id for row in rows] == [EYES, EYES_2, HANDS, YOYO]
    assert rows[0].video == f"{collection}/UCF-101/{EYES}"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("testlist02.txt", f"{YOYO}\n", f"neither in trainlist02.txt and testlist02.txt: '{EYES}'"),
        ("testlist02.txt", f"{YOYO}\n{EYES}\nYoYo/v_x.avi\n", r"1 video is in .* but not in .*: 'YoYo/v_x.avi'"),
        ("testlist02.txt", f"{YOYO}\n{EYES}\n{HANDS}\n", f"1 video is in both .*: '{HANDS}'"),
        ("testlist02.txt", f"{YOYO}\n{YOYO}\n", "line 2: .* a second time"),
        ("testlist02.txt", "../secret.avi\n", "line 1: class '..' is not in classInd.txt"),
        ("testlist02.txt", "a/b/c.avi\n", "line 1: expected"),
        ("trainlist02.txt", f"{EYES_2} 1\n{HANDS} 36\n", "line 2: .* has number 36, in classInd.txt 37"),
        ("classInd.txt", "1 ApplyEyeMakeup\n1 YoYo\n", "line 2: .* a second time"),
        ("classInd.txt", "ApplyEyeMakeup\n", "line 1: expected"),
    ],
)
def test_lists_that_do_not_fit_are_refused(collection: Path, file: str, text: str, message: str) -> None:
    (collection / "lists" / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        ucf101(collection / "UCF-101", collection / "lists", 2, collection / "ucf.csv")


def test_missing_lists_and_other_formats_write_nothing(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(collection, "--output", str(collection / "ucf.txt")) == 2
    assert "must end in .csv or .parquet" in capsys.readouterr().err
    (collection / "lists" / "testlist02.txt").unlink()
    assert make(collection, "--output", str(collection / "ucf.csv")) == 2
    assert "testlist02.txt is missing" in capsys.readouterr().err
    assert not (collection / "ucf.csv").exists()


def test_class_names_in_words() -> None:
    names = {"TaiChi": "tai chi", "YoYo": "yo yo", "Surfing": "surfing", "WalkingWithDog": "walking with dog"}
    assert {name: class_in_words(name) for name in names} == names


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    folder = tmp_path / "MCL-JCV"
    folder.mkdir()
    for number in range(1, 31):
        (folder / f"videoSRC{number:02d}_1920x1080_{25 if number in (5, 6) else 30}.mp4").write_bytes(b"mp4")
    (folder / "readme.txt").write_text("about the set")
    return folder


def test_mcl_jcv_rows(sequences: Path) -> None:
    target = sequences.parent / "jcv.csv"
    assert make_manifest.main(["mcl-jcv", "--source", str(sequences), "--output", str(target)]) == 0
    with target.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert len(rows) == 30
    name = "videoSRC05_1920x1080_25.mp4"
    assert rows[4] == [name, f"MCL-JCV/{name}", "", "", "test", ""]
    assert [row[0][8:10] for row in rows] == [f"{number:02d}" for number in range(1, 31)]


def test_mcl_jcv_folders_that_do_not_fit_are_refused(sequences: Path) -> None:
    manifest = sequences.parent / "jcv.csv"
    (sequences / "videoSRC07_1920x1080_30.mp4").unlink()
    with pytest.raises(ValueError, match=r"lacks sequences 07 of MCL-JCV; .* --partial"):
        mcl_jcv(sequences, manifest)
    assert len(mcl_jcv(sequences, manifest, partial=True)) == 29
    (sequences / "videoSRC08_1920x1080_30_qp40.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 videos are versions of the same sequence: 'videoSRC08_1920x1080_30.mp4'"):
        mcl_jcv(sequences, manifest, partial=True)
    (sequences / "other.mkv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'other.mkv'; move them away"):
        mcl_jcv(sequences, manifest, partial=True)
    with pytest.raises(ValueError, match="is not a folder"):
        mcl_jcv(sequences / "none", manifest)


def test_raw_pictures_must_say_size_and_rate_in_their_name(tmp_path: Path) -> None:
    raw = tmp_path / "videoSRC03_64x48_30.yuv"
    raw.write_bytes(bytes(64 * 48 * 3 // 2))
    assert [row.id for row in mcl_jcv(tmp_path, tmp_path / "jcv.csv", partial=True)] == [raw.name]
    raw.rename(tmp_path / "videoSRC03_64x48.yuv")
    with pytest.raises(ValueError, match=r"videoSRC03_64x48\.yuv: a raw \.yuv file must be named"):
        mcl_jcv(tmp_path, tmp_path / "jcv.csv", partial=True)

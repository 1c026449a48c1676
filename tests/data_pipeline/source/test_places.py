"""Several manifests, patterns and folders as one source; each row's video is found where its own manifest has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.source.config import ColumnsConfig, SourcesConfig
from data_pipeline.source.fetch import Sources
from data_pipeline.source.manifest import ReadOptions, open_places
from data_pipeline.source.places import find_places
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from tests.data_pipeline.build import stub


def manifest(path: Path, *videos: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("video,caption\n" + "".join(f"{video},of {video}\n" for video in videos))
    for video in videos:
        (path.parent / video).write_bytes(f"{path.parent.name}/{video}".encode())
    return path


def read(*sources: Path | str, scratch: Path) -> tuple[str, list[tuple[str, str | None]], str]:
    """The base, video and caption of each row, and what the user is told."""
    said: list[str] = []
    places = find_places([str(source) for source in sources], scratch)
    opened = open_places(places, ReadOptions(say=said.append))
    rows = [row for batch in opened.batches for row in batch.to_pylist()]
    assert [row["row"] for row in rows] == list(range(1, len(rows) + 1))
    return opened.base, [(row["video"], row["caption"]) for row in rows], "\n".join(said)


def test_a_pattern_is_all_its_manifests_in_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        manifest(tmp_path / f"part-{number:03d}.csv", f"{number}.mp4")
    (tmp_path / "other.csv").write_text("not,read\n")
    base, rows, _ = read(tmp_path / "part-*.csv", scratch=tmp_path / "scratch")
    assert base == str(tmp_path)
    assert rows == [("1.mp4", "of 1.mp4"), ("2.mp4", "of 2.mp4"), ("10.mp4", "of 10.mp4")]
    with pytest.raises(ValueError, match="matches nothing; name manifests that are there"):
        read(tmp_path / "parts-*.csv", scratch=tmp_path / "scratch")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    path = manifest(tmp_path / "m[1].csv", "a.mp4")
    manifest(tmp_path / "m1.csv", "b.mp4")
    assert read(path, scratch=tmp_path / "scratch")[1] == [("a.mp4", "of a.mp4")]


def test_manifests_of_several_folders_each_name_their_own_videos(tmp_path: Path) -> None:
    one, two = manifest(tmp_path / "x" / "m.csv", "a.mp4"), manifest(tmp_path / "y" / "deep" / "m.csv", "a.mp4")
    folder = tmp_path / "z"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"z/a.mp4")
    (folder / "a.txt").write_text("of the folder")
    base, rows, said = read(one, two, folder, scratch=tmp_path / "scratch")
    assert base == str(tmp_path)
    sources = Sources(base, SourcesConfig())
    found = [sources.fetch(video, tmp_path).read_text() for video, _ in rows]
    assert found == ["x/a.mp4", "deep/a.mp4", "z/a.mp4"]
    assert [caption for _, caption in rows] == ["of a.mp4", "of a.mp4", "of the folder"]
    assert said.splitlines() == ["x/m.csv: columns video, caption", "z: 1 video found"], (
        "the same columns are said once"
    )


def test_a_caption_table_of_one_of_several_folders_names_its_videos_once(tmp_path: Path) -> None:
    for name in ("x", "y"):
        manifest(tmp_path / name / "captions.csv", "a.mp4", "b.mp4")
    _, rows, _ = read(tmp_path / "x", tmp_path / "y", scratch=tmp_path / "scratch")
    assert [video for video, _ in rows] == ["x/a.mp4", "x/b.mp4", "y/a.mp4", "y/b.mp4"]


def test_addresses_and_absolute_names_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x" / "m.csv"
    path.parent.mkdir()
    path.write_text("video,caption\ns3://bucket/a.mp4,a\nhttps://host/b.mp4,b\n/abs/c.mp4,c\n")
    _, rows, _ = read(path, manifest(tmp_path / "y" / "n.csv", "d.mp4"), scratch=tmp_path / "scratch")
    assert [video for video, _ in rows] == ["s3://bucket/a.mp4", "https://host/b.mp4", "/abs/c.mp4", "y/d.mp4"]


def test_a_bucket_whose_name_begins_like_another_is_another_one(tmp_path: Path) -> None:
    """Nothing is read of the stores, so a folder stands for each of them."""
    found = find_places(["s3://one", "s3://one-more/v", "s3://one/w"], tmp_path, lambda address: LocalStore(tmp_path))
    assert found.base == "s3://one"
    assert [place.prefix for place in found.places] == ["", "s3://one-more/v", "w"]
    found = find_places(["s3://one/v/a", "s3://one/w/b"], tmp_path, lambda address: LocalStore(tmp_path))
    assert found.base == "s3://one"
    assert [place.prefix for place in found.places] == ["v/a", "w/b"]


def test_a_folder_of_nothing_but_manifests_is_all_of_them(tmp_path: Path) -> None:
    for name in ("meta/part-0.csv", "meta/part-1.csv", "meta/deep/part-2.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"video,caption\n{Path(name).stem}.mp4,of {name}\n")
    (tmp_path / "meta" / "_SUCCESS").touch()
    base, rows, said = read(tmp_path / "meta", scratch=tmp_path / "scratch")
    assert base == str(tmp_path / "meta")
    assert [video for video, _ in rows] == ["deep/part-2.mp4", "part-0.mp4", "part-1.mp4"]
    assert "meta holds no videos but 3 manifests, whose rows are read" in said
    (tmp_path / "meta" / "a.mp4").touch()
    _, rows, said = read(tmp_path / "meta", scratch=tmp_path / "scratch")
    assert rows == [("a.mp4", None)]
    assert "not named like a video: 4 (.csv 3, no suffix 1)" in said


def test_what_a_folder_of_manifests_holds_beside_them_is_counted(tmp_path: Path) -> None:
    """A part that is packed, as some writers leave it, is not read, and nobody should think that it was."""
    for name in ("part-0.csv", "PART-1.CSV"):
        (tmp_path / name).write_text(f"video,caption\n{name}.mp4,of {name}\n")
    _, rows, said = read(tmp_path, scratch=tmp_path / "scratch")
    assert [video for video, _ in rows] == ["PART-1.CSV.mp4", "part-0.csv.mp4"]
    assert "left out" not in said
    (tmp_path / "part-2.csv.gz").touch()
    _, _, said = read(tmp_path, scratch=tmp_path / "scratch")
    assert "not named like a video: 1 (.gz 1)" in said


def test_an_empty_part_is_said_and_no_rows_at_all_are_refused(tmp_path: Path) -> None:
    parts = [manifest(tmp_path / "1.csv"), manifest(tmp_path / "2.csv", "a.mp4")]
    _, rows, said = read(*parts, scratch=tmp_path / "scratch")
    assert len(rows) == 1
    assert "1.csv has no rows" in said
    with pytest.raises(ValueError, match="has no rows"):
        read(parts[0], parts[0], scratch=tmp_path / "scratch")


def test_a_wrong_row_is_named_by_its_own_manifest(tmp_path: Path) -> None:
    manifest(tmp_path / "x" / "m.csv", "a.mp4", "b.mp4")
    wrong = manifest(tmp_path / "y" / "m.csv")
    wrong.write_text("video,caption\n,nothing\n")
    with pytest.raises(ValueError, match=r"y/m\.csv row 1: video is missing"):
        read(tmp_path / "?" / "m.csv", scratch=tmp_path / "scratch")


def test_strangers_may_not_name_the_files_of_another_folder(tmp_path: Path) -> None:
    one, two = manifest(tmp_path / "x" / "m.csv", "a.mp4"), manifest(tmp_path / "y" / "m.csv", "a.mp4")
    with pytest.raises(ValueError, match="takes manifests of one folder"):
        find_places([str(one), str(two)], tmp_path, untrusted=True)
    assert len(find_places([str(one), str(one)], tmp_path, untrusted=True).places) == 2


def test_the_plan_of_several_is_found_again_and_other_columns_make_another(tmp_path: Path) -> None:
    one, two = manifest(tmp_path / "x" / "m.csv", "a.mp4"), manifest(tmp_path / "y" / "m.csv", "a.mp4", "b.mp4")
    store = LocalStore(tmp_path / "out")

    def config(**settings: ColumnsConfig) -> ShardsConfig:
        return ShardsConfig(source=str(one), more_sources=[str(two)], output=str(store.root), **settings)  # type: ignore[arg-type]

    made = make_plan(config(), "e", store)
    assert [row.video for unit in range(made.plan.units) for row in PlanRows(Dataset(store, made.plan)).unit(unit)] == [
        "x/a.mp4",
        "y/a.mp4",
        "y/b.mp4",
    ]
    assert not make_plan(config(), "e", store).fresh
    with pytest.raises(ValueError, match="was planned from another manifest"):
        make_plan(config(columns=ColumnsConfig(caption="video")), "e", store)


@pytest.mark.s3
def test_a_folder_on_s3_is_built(s3_uri: str, tmp_path: Path) -> None:
    store = open_store(s3_uri)
    for key, text in {
        "v/a.mp4": "clip 900\x1c",  # a separator, with which it is no text of people
        "v/a.txt": "a caption",
        "v/b c.mp4": "clip 9\x1c",
        "v/é.mp4": "clip 99\x1c",
    }.items():
        store.write(key, text.encode())
    store.write("v/é.txt", b"a caption")
    result = stub.build_here(stub.config_of(f"{s3_uri}/v", tmp_path / "out"))
    assert result.dataset is not None
    counts = result.dataset.ledger.row_counts()
    assert (counts.input, counts.committed, counts.rejected) == (3, 2, {"caption_missing": 1})


@pytest.mark.s3
def test_manifests_and_folders_on_s3(s3_uri: str, tmp_path: Path) -> None:
    store = open_store(s3_uri)
    bytes_of = {
        "videos/b/2.mp4": b"\0v2",
        "videos/a.mp4": b"\0va",
        "videos/a.txt": "\ufeffof a".encode(),
        "videos/c.vob": b"",
    }
    parts = {f"meta/part-{n}.csv": f"video,caption\n../{n}.mp4,of {n}\n".encode() for n in (1, 2)}
    for key, data in {**bytes_of, **parts, "meta/deep/part-3.csv": b"video,caption\n../3.mp4,of 3\n"}.items():
        store.write(key, data)
    base, rows, said = read(f"{s3_uri}/videos/", scratch=tmp_path / "1")
    assert base == f"{s3_uri}/videos"
    assert rows == [("a.mp4", "of a"), ("b/2.mp4", None)]
    assert "videos: 2 videos found; files left out that are not named like a video: 1 (.vob 1)" in said
    fetched = Sources(base, SourcesConfig()).fetch(rows[1][0], tmp_path)
    assert fetched.read_bytes() == b"\0v2"
    base, rows, _ = read(f"{s3_uri}/meta/part-*.csv", scratch=tmp_path / "2")
    assert base == f"{s3_uri}/meta"
    assert [caption for _, caption in rows] == ["of 1", "of 2"]
    store.write("videos/captions.csv", b"video,caption\nb/2.mp4,of 2\n")
    assert read(f"{s3_uri}/videos", scratch=tmp_path / "3")[1] == [("b/2.mp4", "of 2"), ("a.mp4", "of a")]
    local = manifest(tmp_path / "here" / "m.csv", "x.mp4")
    _, rows, _ = read(local, f"{s3_uri}/videos", scratch=tmp_path / "4")
    assert [video for video, _ in rows] == ["x.mp4", f"{s3_uri}/videos/b/2.mp4", f"{s3_uri}/videos/a.mp4"]
    with pytest.raises(ValueError, match=r"no videos in s3://.*/nothing; .*part-\*"):
        read(f"{s3_uri}/nothing", scratch=tmp_path / "5")
    _, rows, said = read(f"{s3_uri}/meta", scratch=tmp_path / "6")
    assert [caption for _, caption in rows] == ["of 3", "of 1", "of 2"]
    assert rows[0][0] == "deep/../3.mp4"
    assert "meta holds no videos but 3 manifests, whose rows are read" in said

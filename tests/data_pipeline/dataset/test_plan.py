"""The plan: whole units, found again, refused when anything that matters has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import Planned, make_plan
from data_pipeline.cut.config import ClipConfig
from data_pipeline.dataset import plan as plan_module
from data_pipeline.dataset.config import Duplicates
from data_pipeline.dataset.plan import Dataset, read_plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.source.config import SourcesConfig, SplitConfig, WrongRows
from data_pipeline.store.local import LocalStore


def manifest(path: Path, rows: int, changed: dict[int, str] | None = None) -> Path:
    lines = [f"v{number}.mp4,{(changed or {}).get(number, f'caption {number}')}\n" for number in range(1, rows + 1)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("video,caption\n" + "".join(lines))
    return path


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., tuple[Planned, LocalStore]]:
    def plan(rows: int = 25, encoder: str = "e1", changed: dict[int, str] | None = None, **settings: Any) -> Any:
        source = manifest(tmp_path / "m.csv", rows, changed)
        store = LocalStore(tmp_path / "out")
        config = ShardsConfig(source=str(source), output=str(store.root), **settings)
        return make_plan(config, encoder, store), store

    return plan


def test_units_cover_every_row_once_in_order(
    planned: Callable[..., tuple[Planned, LocalStore]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "PART_ROWS", 10)  # 3 units a part, so units lie in several parts
    monkeypatch.setattr("data_pipeline.dataset.row_tables.DIGEST_ROWS", 7)
    made, store = planned(25, unit_rows=3)
    plan = made.plan
    assert made.fresh
    assert (plan.units, plan.rows) == (9, 25)
    rows = PlanRows(Dataset(store, plan), keep=1)
    assert [row.row for unit in range(9) for row in rows.unit(unit)] == list(range(1, 26))
    assert [plan.rows_in(unit) for unit in range(9)] == [3] * 8 + [1]
    assert [row.video for row in rows.unit(2)] == ["v7.mp4", "v8.mp4", "v9.mp4"], "an earlier part is found again"
    assert len(list(store.keys("plan/"))) == 3
    assert len({plan.inputs(unit) for unit in range(9)}) == 9
    with pytest.raises(IndexError, match="unit 9"):
        plan.segment_of(9)


def test_the_inputs_of_a_unit_are_all_that_decides_its_bytes(
    planned: Callable[..., tuple[Planned, LocalStore]],
) -> None:
    plan = planned(25, unit_rows=3)[0].plan
    (segment,) = plan.segments
    others = [
        replace(plan, encoder="e2"),
        replace(plan, settings=plan.settings | {"clip.crf": 19}),
        replace(plan, segments=(replace(segment, digest="0" * 64),)),
        replace(plan, segments=(replace(segment, cuts=(4, 8, 12, 16, 20, 24)),)),
    ]
    assert len({other.inputs(1) for other in (plan, *others)}) == 5
    elsewhere = replace(plan, segments=(replace(segment, name="n.csv", file_sha256=""),))
    assert elsewhere.inputs(1) == plan.inputs(1)


def test_a_part_that_is_used_is_kept(
    planned: Callable[..., tuple[Planned, LocalStore]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "PART_ROWS", 6)  # two units of three rows a part
    made, store = planned(25, unit_rows=3)
    read, asked = store.read, []
    monkeypatch.setattr(store, "read", lambda key: asked.append(key[-13:-8]) or read(key))  # type: ignore[func-returns-value]
    rows = PlanRows(Dataset(store, made.plan), keep=2)
    for unit in (0, 2, 1, 4, 1):
        assert rows.unit(unit)[0].row == 3 * unit + 1
    assert asked == ["00000", "00001", "00002"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("ab", "c", "", ""), ("a", "bc", "", "")),  # the same text, parted elsewhere
        (("a", "b", "0", ""), ("a", "b", "", "")),  # from 0 s, and from the beginning, be that where it may
        (("a", "b", "1", "2"), ("a", "b", "1", "3")),
    ],
)
def test_manifests_that_differ_anywhere_have_other_digests(one: Any, other: Any, tmp_path: Path) -> None:
    digests = []
    for number, (first, second, start, end) in enumerate((one, other)):
        source = tmp_path / f"{number}.csv"
        rows = f"x,v.mp4,{first},{start},{end}\ny,v.mp4,{second},{start},{end}\n"
        source.write_text("id,video,caption,start,end\n" + rows)
        store = LocalStore(tmp_path / f"out-{number}")
        config = ShardsConfig(source=str(source), output=str(store.root))
        digests.append(make_plan(config, "e", store).plan.segments[0].digest)
    assert digests[0] != digests[1]


def test_a_plan_of_another_format_is_refused(planned: Callable[..., tuple[Planned, LocalStore]]) -> None:
    _, store = planned()
    store.write("plan.json", store.read("plan.json").replace(b'"format": 2', b'"format": 1'))
    with pytest.raises(ValueError, match=r"plan\.json: format 1, and this version reads 2"):
        read_plan(store)


def test_another_folder_is_another_manifest(tmp_path: Path) -> None:
    """A folder has no digest of a file, and no two of them are the same for that."""
    store = LocalStore(tmp_path / "out")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.mp4").write_bytes(b"x")
    make_plan(ShardsConfig(source=str(tmp_path / "one"), output=str(store.root)), "e", store)
    with pytest.raises(ValueError, match=r"row 1, column id: was 'one\.mp4', is 'two\.mp4'"):
        make_plan(ShardsConfig(source=str(tmp_path / "two"), output=str(store.root)), "e", store)


@pytest.mark.parametrize("rows", [25, 24])
def test_of_two_runs_that_plan_at_once_the_later_one_takes_the_same_plan_or_leaves(
    rows: int, planned: Callable[..., tuple[Planned, LocalStore]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = LocalStore.put_if_absent

    def second(store: LocalStore, key: str, data: bytes) -> bool:
        monkeypatch.setattr(LocalStore, "put_if_absent", put)
        planned(rows)
        return put(store, key, data)

    source = manifest(tmp_path / "other" / "m.csv", 25)
    store = LocalStore(tmp_path / "out")
    monkeypatch.setattr(LocalStore, "put_if_absent", second)
    config = ShardsConfig(source=str(source), output=str(store.root))
    if rows == 25:
        assert make_plan(config, "e1", store).plan == read_plan(store)
    else:
        with pytest.raises(ValueError, match="was planned by another run meanwhile; run the same command again"):
            make_plan(config, "e1", store)


def test_the_same_command_finds_its_plan(planned: Callable[..., tuple[Planned, LocalStore]]) -> None:
    first, store = planned()
    again, _ = planned(sources=SourcesConfig(attempts=3))  # changes no byte of the dataset
    assert not again.fresh
    assert again.plan == first.plan == read_plan(store)


def test_the_plan_does_not_depend_on_where_the_manifest_lies_or_its_format(tmp_path: Path) -> None:
    plans = []
    for name in ("here/m.csv", "there/n.jsonl"):
        source = tmp_path / name
        source.parent.mkdir()
        if name.endswith("csv"):
            manifest(source, 5)
        else:
            source.write_text(
                "".join(json.dumps({"video": f"v{n}.mp4", "caption": f"caption {n}"}) + "\n" for n in range(1, 6))
            )
        store = LocalStore(tmp_path / f"out-{source.stem}")
        plans.append(make_plan(ShardsConfig(source=str(source), output=str(store.root)), "e", store).plan)
    one, two = (replace(plan.segments[0], file_sha256="", name="") for plan in plans)
    assert one == two


def test_other_settings_are_refused_key_by_key(planned: Callable[..., tuple[Planned, LocalStore]]) -> None:
    planned()
    with pytest.raises(ValueError, match="planned with other settings") as refusal:
        planned(encoder="e2", clip=ClipConfig(fps=4), split=SplitConfig(val=0.5))
    assert "(clip.fps: 8 -> 4, split.val: 0.01 -> 0.5, clip encoder: e1 -> e2); use the old ones" in str(refusal.value)


def test_of_many_other_settings_the_first_few_are_named(
    planned: Callable[..., tuple[Planned, LocalStore]],
) -> None:
    planned()
    with pytest.raises(ValueError, match=r"clip\.crf: .*, and 2 more\); use the old ones, or another output$"):
        planned(encoder="e2", clip=ClipConfig(fps=4, crf=20, gop=4, short_side=128), split=SplitConfig(val=0.5))


def test_another_manifest_is_refused_with_the_first_difference(
    planned: Callable[..., tuple[Planned, LocalStore]],
) -> None:
    planned(25)
    with pytest.raises(ValueError, match=r"row 19, column caption: was 'caption 19', is 'other'"):
        planned(25, changed={19: "other"})
    with pytest.raises(ValueError, match=r"rows: were 25, are 26\n.*rows 1 to 25 are the same"):
        planned(26)


def test_duplicate_ids_are_listed_with_their_rows_or_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.dataset.row_tables.DIGEST_ROWS", 4)
    source = tmp_path / "m.csv"
    ids = ["a", "b", "c", "a", "d", "e", "b", "f", "a"]
    source.write_text("video,id,caption\n" + "".join(f"{n}.mp4,{identity},c\n" for n, identity in enumerate(ids)))
    store = LocalStore(tmp_path / "out")
    with pytest.raises(ValueError, match=r"2 ids stand for more than one row.*duplicates=merge") as refusal:
        make_plan(ShardsConfig(source=str(source), output=str(store.root)), "e", store)
    assert "'a' in rows 1, 4, 9" in str(refusal.value)
    assert "'b' in rows 2, 7" in str(refusal.value)
    assert not list(store.keys()), "nothing was planned"
    config = ShardsConfig(source=str(source), output=str(store.root), duplicates=Duplicates.MERGE, unit_rows=100)
    plan = make_plan(config, "e", store).plan
    assert plan.segments[0].duplicates == 3
    merged = {row.row: row.duplicate_of for row in PlanRows(Dataset(store, plan)).unit(0)}
    assert merged == {1: None, 2: None, 3: None, 4: 1, 5: None, 6: None, 7: 2, 8: None, 9: 1}


def test_a_plan_that_was_never_finished_does_not_count(
    planned: Callable[..., tuple[Planned, LocalStore]],
) -> None:
    _, store = planned(25)
    store.delete("plan.json")
    made, _ = planned(30)
    assert made.fresh
    assert made.plan.rows == 30


def test_a_wrong_row_leaves_no_plan(planned: Callable[..., tuple[Planned, LocalStore]], tmp_path: Path) -> None:
    source = tmp_path / "bad.csv"
    source.write_text("video,caption,start\na,c,1\nb,c,x\n")
    store = LocalStore(tmp_path / "bad")
    with pytest.raises(ValueError, match=r"bad\.csv row 2"):
        make_plan(ShardsConfig(source=str(source), output=str(store.root)), "e", store)
    assert not list(store.keys())


def windows(path: Path, videos: list[str]) -> Path:
    rows = [f"{video},{2 * row},{2 * row + 2},c\n" for row, video in enumerate(videos)]
    path.write_text("video,start,end,caption\n" + "".join(rows))
    return path


def units_of(source: Path, store: LocalStore, **settings: Any) -> list[list[str]]:
    plan = make_plan(ShardsConfig(source=str(source), output=str(store.root), **settings), "e", store).plan
    rows = PlanRows(Dataset(store, read_plan(store)))
    units = [[row.video for row in rows.unit(unit)] for unit in range(plan.units)]
    assert [len(unit) for unit in units] == [plan.rows_in(unit) for unit in range(plan.units)]
    return units


def test_the_windows_of_a_video_stay_in_one_unit_across_parts_and_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan_module, "PART_ROWS", 12)
    monkeypatch.setattr("data_pipeline.dataset.row_tables.DIGEST_ROWS", 3)
    videos = [f"http://host/{name}.mp4" for name in "aaabbcccccddddeffgggg"]
    units = units_of(windows(tmp_path / "m.csv", videos), LocalStore(tmp_path / "out"), unit_rows=5)
    assert ["".join(video[12] for video in unit) for unit in units] == ["aaabb", "ccccc", "dddde", "ffgggg"[:2], "gggg"]
    assert len(list((tmp_path / "out" / "plan").iterdir())) == 2
    assert len(capsys.readouterr().out.splitlines()) == 1, "only the columns are named: nothing is fetched twice"


def test_what_is_fetched_again_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = [f"http://host/{name}.mp4" for name in "aabbbbbbbbaca"]
    units = units_of(windows(tmp_path / "m.csv", videos), LocalStore(tmp_path / "out"), unit_rows=3)
    assert ["".join(video[12] for video in unit) for unit in units] == ["aa", "bbb", "bbb", "bba", "ca"]
    _, again, within = capsys.readouterr().out.splitlines()
    assert "the rows of 1 video do not all stand beside each other, which takes 2 further fetches" in again
    assert "2 cuts between units within the rows of one video" in within


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        pytest.param(["a,x,", "b,x,", "a,x,"], [], id="a row that is merged"),
        pytest.param(["a,x,", "b,x,", "a,x,", "a2,x,"], ["takes 1 further fetch;"], id="one that is merged, one not"),
        pytest.param(["a,x,", "b,x,", "a2,,"], [], id="a row without a caption"),
        pytest.param(["a,x,", "b,x,", "a2,..,", "c,x,", "a3,x,"], ["takes 1 further fetch;"], id="no text"),
        pytest.param(["a,x,"] * 5, [], id="a unit of merged rows alone"),
        pytest.param([*["a,x,"] * 4, "a2,x,"], ["1 cut between units"], id="needed rows in two units"),
        pytest.param(["a,x,", "b,x,", "a2,x,soon"], [], id="a wrong row"),
        pytest.param(["a,x,soon", "a2,x,", "b,x,", "a3,x,"], ["takes 1 further fetch;"], id="a wrong row first"),
    ],
)
def test_a_row_that_needs_no_video_takes_no_further_fetch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[str], said: list[str]
) -> None:
    """Rows are id, caption and start; `a2` is another row of the video `a`, and a start of `soon` is none."""
    lines = [f"http://host/{row[0]}.mp4,{row}" for row in rows]
    (tmp_path / "m.csv").write_text("\n".join(["video,id,caption,start", *lines, ""]))
    units_of(
        *(tmp_path / "m.csv", LocalStore(tmp_path / "out")),
        unit_rows=3,
        duplicates=Duplicates.MERGE,
        rows=WrongRows.RECORD,
    )
    told = [line for line in capsys.readouterr().out.splitlines() if "fetch" in line or "cut" in line]
    assert len(told) == len(said)
    assert all(words in line for words, line in zip(said, told, strict=True))


def test_files_of_a_folder_are_fetched_by_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units_of(windows(tmp_path / "m.csv", ["a.mp4", "b.mp4", "a.mp4"]), LocalStore(tmp_path / "out"))
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_twelve_rows_of_one_video_are_one_unit(tmp_path: Path) -> None:
    source = windows(tmp_path / "m.csv", ["http://host/a.mp4"] * 12)
    assert [len(unit) for unit in units_of(source, LocalStore(tmp_path / "out"))] == [12]


@pytest.mark.parametrize("cuts", [[3, 3], [0], [25], [4, 3], [-1]])
def test_cuts_that_are_none_are_damage(planned: Callable[..., tuple[Planned, LocalStore]], cuts: list[int]) -> None:
    _, store = planned(25, unit_rows=3)
    content = json.loads(store.read("plan.json"))
    content["segments"][0]["cuts"] = cuts
    store.write("plan.json", json.dumps(content).encode())
    with pytest.raises(ValueError, match=r"plan\.json is damaged: field segments\[0\]\.cuts must be positions of rows"):
        read_plan(store)

"""From every state of a dataset a named command goes on, and a refused command leaves every byte as it was."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.build.builder import finish_build, plan_build
from data_pipeline.build.config import RunConfig, ShardsConfig
from data_pipeline.build.dataset_job import DatasetResult
from data_pipeline.build.driver import UnitsRun
from data_pipeline.build.planner import make_plan
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.retry import plan_retry
from data_pipeline.dataset.unfinished import next_step
from data_pipeline.dataset.units import committed_units
from data_pipeline.dataset.verify import verify
from data_pipeline.source.config import WrongRows
from data_pipeline.store.local import LocalStore
from launch import build_shards
from tests.data_pipeline.build import stub
from tests.data_pipeline.build.stub import contents


class Desk:
    """A user with manifests in folders of their own and one output; units have two rows and are built here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LocalStore(folder / "out put")

    def manifest(self, name: str, rows: int) -> Path:
        folder = stub.write_sources(self.folder / name, rows)
        lines = [f"v{number:03d}.mp4,{name}{number},a caption" for number in range(rows)]
        path = folder / f"{name}.csv"
        path.write_text("\n".join(["video,id,caption", *lines, ""]))
        return path

    def config(self, source: Path | str) -> ShardsConfig:
        return ShardsConfig(source=str(source), output=str(self.store.root), unit_rows=2)

    def run(self, source: Path | str, units: int = 99, **options: bool) -> DatasetResult:
        """What the command does, ended by Ctrl-C after some units."""
        job, missing = plan_build(self.config(source), stub.ENCODER, self.store, **options)
        for unit in missing[:units]:
            stub.run_unit(job, unit)
        if units < len(missing):
            return DatasetResult(job.plan, UnitsRun(), None)
        return finish_build(job, UnitsRun(done=len(missing)), self.store)

    def refused(self, source: Path | str, **options: bool) -> str:
        """The words of a refusal, which has changed nothing."""
        before = contents(self.store)
        with pytest.raises(ValueError, match=r"\w") as found:
            self.run(source, **options)
        assert contents(self.store) == before
        return str(found.value)

    def go_on(self, words: str, folder: Path) -> DatasetResult:
        """Run the first command that a message names, with the folder that it leaves open."""
        command = re.search(r"python (launch/build_shards.py .*?)(?: ; then|\n|:\n|$)", words)
        assert command, words
        arguments = shlex.split(command[1])
        output, from_plan, *source = arguments[2:]
        assert (arguments[:2], from_plan) == (["launch/build_shards.py", "--output"], "--from-plan")
        assert Path(output) == self.store.root
        place = source[1].replace("FOLDER", str(folder)) if source else f"{output}/plan.json"
        return self.run(place, from_plan=True)

    def proven(self) -> None:
        assert verify(self.store).problems == []


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_nothing_is_appended_to_an_interrupted_build_and_the_build_goes_on(desk: Desk) -> None:
    first, more = desk.manifest("first", 6), desk.manifest("more", 2)
    desk.run(first, units=1)
    words = desk.refused(more, append=True)
    assert "2 units of" in words
    assert "nothing was changed" in words
    undisturbed = contents(desk.store)
    desk.go_on(words, first.parent)
    assert undisturbed.items() <= contents(desk.store).items()
    desk.proven()
    assert desk.run(more, append=True).dataset is not None
    desk.proven()


def test_a_dataset_that_was_not_finalized_is_finalized_from_its_plan(desk: Desk) -> None:
    first = desk.manifest("first", 4)
    desk.run(first)
    assert "verify_shards.py" in next_step(Dataset.open(desk.store))
    whole = contents(desk.store)
    desk.store.delete("dataset.json")
    first.unlink()
    assert "finalize it with" in next_step(Dataset.open(desk.store))
    assert desk.go_on(next_step(Dataset.open(desk.store)), Path("unused")).run.done == 0
    assert contents(desk.store) == whole


def test_a_scratch_folder_that_is_missing_is_made_also_where_only_the_index_is_left_to_be_made(desk: Desk) -> None:
    source = desk.manifest("one", 2)
    desk.run(source)
    whole = contents(desk.store)
    desk.store.delete("dataset.json")
    config = replace(desk.config(source), run=RunConfig(scratch=str(desk.folder / "scratch")))
    job, missing = plan_build(config, stub.ENCODER, desk.store, from_plan=True)
    assert not missing
    finish_build(job, UnitsRun(), desk.store)
    assert contents(desk.store) == whole


@pytest.mark.parametrize("damage", ["missing", "cut short", "one bit"])
def test_an_index_that_is_missing_or_damaged_is_made_anew_by_the_same_command(
    desk: Desk, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = desk.manifest("first", 4)
    desk.run(first)
    whole = contents(desk.store)
    index = desk.store.root / "index.arrow"
    data = bytearray(index.read_bytes())
    index.unlink()
    if damage == "cut short":
        index.write_bytes(data[:-9])
    elif damage == "one bit":
        data[len(data) // 2] ^= 1
        index.write_bytes(data)
    result = desk.run(first)
    assert (result.run.done, result.dataset is not None) == (0, True)
    said = capsys.readouterr().out
    assert re.search(rf"{index} (is missing|has \d+ bytes and not \d+|has another SHA-256); it is made anew", said)
    assert contents(desk.store) == whole
    desk.proven()
    desk.run(first)
    assert "made anew" not in capsys.readouterr().out


def test_a_plan_that_is_damaged_or_lost_is_made_anew_by_the_commands_that_made_the_dataset(desk: Desk) -> None:
    """One command that plans less than there is removes nothing; all of them give the bytes that there were."""
    first, more = desk.manifest("first", 4), desk.manifest("more", 4)
    desk.run(first)
    desk.run(more, append=True)
    whole = contents(desk.store)
    desk.store.write("plan.json", desk.store.read("plan.json")[:-100])
    assert re.search(
        r"plan\.json is damaged: .* or delete it and run the same commands again that", desk.refused(first)
    )
    desk.store.delete("plan.json")
    with pytest.raises(ValueError, match=r"its dataset\.json is that of a dataset of clips") as lost:
        Dataset.open(desk.store)
    assert "run the same commands of launch/build_shards.py again" in str(lost.value)
    with pytest.raises(ValueError, match=r"2 committed units more than the 2 of its plan\.json \(first: units/000002"):
        desk.run(first)
    assert desk.run(more, append=True).run.done == 0
    assert contents(desk.store) == whole
    desk.proven()


def test_two_interrupted_manifests_do_not_wait_for_each_other(desk: Desk) -> None:
    """The state that earlier versions left: a plan with two manifests, of which neither is complete."""
    first, more = desk.manifest("first", 6), desk.manifest("more", 4)
    desk.run(first)
    desk.run(more, units=0, append=True)
    desk.store.delete("units/000001.json")
    assert "3 units of" in desk.refused(desk.manifest("third", 2), append=True)
    result = desk.run(first)
    assert (result.run.done, result.dataset) == (1, None)
    assert result.left.startswith("2 units of other manifests left; ")
    assert "more.csv" in result.left
    assert desk.go_on(result.left, more.parent).dataset is not None
    desk.proven()


def test_an_interrupted_append_is_completed_before_the_next_one(desk: Desk) -> None:
    first, more, third = desk.manifest("first", 4), desk.manifest("more", 4), desk.manifest("third", 2)
    desk.run(first)
    desk.run(more, units=1, append=True)
    assert "belongs to the manifest 'more.csv'" in desk.refused(first)
    words = desk.refused(third, append=True)
    desk.go_on(words, more.parent)
    assert desk.run(third, append=True).dataset is not None
    desk.proven()


def test_a_lost_or_changed_manifest_is_not_needed(desk: Desk) -> None:
    first = desk.manifest("first", 6)
    whole = Desk(desk.folder / "whole")
    whole.run(first)
    desk.run(first, units=1)
    first.write_text(first.read_text().replace("a caption", "a better caption", 1))
    words = desk.refused(first)
    assert "planned from another manifest" in words
    first.unlink()
    with pytest.raises(ValueError, match=r"first\.csv"):
        desk.run(first)
    assert "--from-plan" in next_step(Dataset.open(desk.store))
    desk.go_on(words, first.parent)
    desk.proven()
    assert contents(desk.store) == contents(whole.store), "the same bytes as with the manifest"


def test_a_folder_that_has_grown_is_completed_from_the_plan(desk: Desk) -> None:
    folder = stub.write_sources(desk.folder / "videos", 6)
    desk.run(folder, units=1)
    (folder / "new.mp4").write_text("clip 9")
    words = desk.refused(folder)
    assert "--append" not in words
    assert desk.refused(folder, append=True).count("nothing was changed") == 1
    assert desk.run(folder, from_plan=True).dataset is not None
    desk.proven()
    assert "a manifest of the rows alone that the dataset does not have yet" in desk.refused(folder, append=True)


def test_relative_videos_need_a_folder_and_others_do_not(desk: Desk) -> None:
    first = desk.manifest("first", 4)
    desk.run(first, units=1)
    assert "add --source FOLDER" in desk.refused(f"{desk.store.root}/plan.json", from_plan=True)
    assert "no folder" in desk.refused(desk.folder / "gone", from_plan=True)
    assert "no manifest of the plan is called 'other.csv'" in desk.refused(first.parent / "other.csv", from_plan=True)
    lines = [f"{first.parent}/v{number:03d}.mp4,a caption" for number in range(4)]
    absolute = Desk(desk.folder / "absolute")
    absolute.folder.mkdir()
    (absolute.folder / "m.csv").write_text("\n".join(["video,caption", *lines, ""]))
    absolute.run(absolute.folder / "m.csv", units=1)
    assert "--source" not in next_step(Dataset.open(absolute.store))
    absolute.go_on(next_step(Dataset.open(absolute.store)), Path("unused"))
    absolute.proven()


def test_a_second_try_from_the_plan_alone_needs_the_folder_of_relative_videos(desk: Desk) -> None:
    """Without it, the rows would be looked for in whatever folder the worker stands in."""
    first = desk.manifest("first", 4)
    lost = first.parent / "v001.mp4"
    words = lost.read_text()
    lost.unlink()
    desk.run(first)
    refusal = desk.refused(f"{desk.store.root}/plan.json", from_plan=True, retry_quarantined=True)
    assert "'v001.mp4' is a relative path; add --source FOLDER" in refusal
    lost.write_text(words)
    assert desk.run(first.parent, from_plan=True, retry_quarantined=True).run.done == 1
    desk.proven()
    ledger = Dataset.open(desk.store)
    assert ledger.plan.units == 3
    assert '"fate":"quarantined"' not in desk.store.read("units/000002.json").decode()


def test_the_command_for_several_sources_names_the_folder_that_they_have_in_common(desk: Desk) -> None:
    first, more = desk.manifest("first", 4), desk.manifest("more", 4)
    config = ShardsConfig(source=str(first), more_sources=[str(more)], output=str(desk.store.root), unit_rows=2)
    job, missing = plan_build(config, stub.ENCODER, desk.store)
    stub.run_unit(job, missing[0])
    step = next_step(Dataset.open(desk.store))
    assert step.endswith(" --from-plan --source FOLDER")
    assert desk.go_on(step, desk.folder).dataset is not None
    desk.proven()
    assert b'"quarantined"' not in b"".join(desk.store.read(f"units/{unit:06d}.json") for unit in range(4))


def test_several_sources_go_on_from_their_plan(desk: Desk) -> None:
    first, more = desk.manifest("first", 4), desk.manifest("more", 4)
    sources = {"source": str(first), "more_sources": [str(more)]}
    config = ShardsConfig(**sources, output=str(desk.store.root), unit_rows=2)
    job, missing = plan_build(config, stub.ENCODER, desk.store)
    stub.run_unit(job, missing[0])
    more.unlink()
    turned = ShardsConfig(source=str(more), more_sources=[str(first)], output=str(desk.store.root), unit_rows=2)
    with pytest.raises(ValueError, match=r"is called 'more\.csv and 1 more'; it was made of 'first\.csv and 1 more'"):
        plan_build(turned, stub.ENCODER, desk.store, from_plan=True)
    job, missing = plan_build(config, stub.ENCODER, desk.store, from_plan=True)
    assert (job.base, job.folders, missing) == (str(desk.folder), (str(first.parent), str(more.parent)), [1, 2, 3])
    for unit in missing:
        stub.run_unit(job, unit)
    assert finish_build(job, UnitsRun(done=len(missing)), desk.store).dataset is not None
    desk.proven()


def test_a_wrong_row_needs_no_folder(desk: Desk) -> None:
    """Its video is empty where it could not be made out, and nobody fetches it."""
    there = stub.write_sources(desk.folder / "videos", 2)
    desk.store.root.parent.mkdir(exist_ok=True)
    manifest = desk.folder / "m.csv"
    manifest.write_text(f"video,caption\n{there}/v000.mp4,a caption\n,a caption\n{there}/v001.mp4,a caption\n")
    config = ShardsConfig(source=str(manifest), output=str(desk.store.root), unit_rows=2, rows=WrongRows.RECORD)
    plan_build(config, stub.ENCODER, desk.store)
    step = next_step(Dataset.open(desk.store))
    assert "--source" not in step
    assert desk.go_on(step, Path("unused")).dataset is not None
    desk.proven()


def test_an_interrupted_second_try_goes_on_from_the_plan(desk: Desk) -> None:
    first = desk.manifest("first", 6)
    desk.run(first)
    (first.parent / "v004.mp4").write_text("clip 700")
    plan_retry(Dataset.open(desk.store), 0)
    first.unlink()
    result = desk.go_on(next_step(Dataset.open(desk.store)), first.parent)
    assert result.run.done == 1
    assert committed_units(desk.store) == {0, 1, 2, 3}
    desk.proven()


def test_a_damaged_list_of_removed_sources_is_found_before_the_plan_is_written(desk: Desk) -> None:
    desk.store.write("takedown.json", b"{")
    assert "takedown.json is damaged" in desk.refused(desk.manifest("first", 2))


@pytest.mark.parametrize(
    ("word", "status"),
    [("run.address=127.0.0.1:9", 1), ("run.address=nowhere", 2), ("run.unit_cpus=100000", 2)],
)
def test_what_ray_cannot_do_is_refused_before_the_plan_is_written(
    word: str, status: int, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    first, output = desk.manifest("first", 2), ["--output", str(desk.store.root)]
    assert build_shards.main(["--source", str(first), *output, word]) == status
    assert not desk.store.exists("plan.json")


def test_the_command_shows_what_to_do_next(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    first, output = desk.manifest("first", 4), ["--output", str(desk.store.root)]
    make_plan(desk.config(first), stub.ENCODER, desk.store)
    assert build_shards.main([*output, "--status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"go on with: python launch/build_shards.py --output '{desk.store.root}' --from-plan --source FOLDER/first.csv"
    )
    for words, expected in (
        (["--from-plan"], "--from-plan needs --output"),
        ([*output, "--from-plan", "--append"], "no --append"),
        ([*output, "--from-plan"], "planned with other settings"),  # of the made-up encoder; all others are the plan's
        (["--output", str(desk.folder), "--from-plan"], "has no plan.json"),
    ):
        assert build_shards.main(words) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert "unit_rows" not in error

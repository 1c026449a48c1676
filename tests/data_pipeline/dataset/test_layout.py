"""Which files belong to a dataset, against the files of datasets that were built, appended to and taken down from."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.dataset.layout import is_dataset_key
from data_pipeline.dataset.takedown import take_down
from tests.data_pipeline.dataset.built import Built


def test_every_file_that_is_written_to_a_dataset_belongs_to_it(tmp_path: Path) -> None:
    dataset = Built(tmp_path)
    for number in range(2):
        folder = tmp_path / f"videos{number}"
        folder.mkdir()
        for video in range(3):
            (folder / f"v{number}{video}.mp4").write_text("clip 500\n")
            (folder / f"v{number}{video}.txt").write_text("a caption")
        dataset.build(folder, append=number > 0)
    take_down(dataset.current, {"v00.mp4"})
    files = [
        path.relative_to(dataset.store.root).as_posix() for path in dataset.store.root.rglob("*") if path.is_file()
    ]
    assert {"dataset.json", "plan.json", "takedown.json", "index.arrow"} <= set(files)
    assert {name.partition("/")[0] for name in files if "/" in name} == {"plan", "units", "shards"}
    assert [name for name in files if not is_dataset_key(name)] == []


@pytest.mark.parametrize("name", ["report.html", "report.json", "results/dataset.json", "unitsize", "shards.html"])
def test_other_files_do_not(name: str) -> None:
    assert not is_dataset_key(name)

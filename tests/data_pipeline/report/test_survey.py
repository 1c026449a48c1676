"""What a survey makes of samples that are damaged: a refusal that names the sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.report.config import SurveyConfig
from data_pipeline.report.survey import survey
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.build import stub
from tests.data_pipeline.dataset.built import Built


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    built = Built(tmp_path)
    built.build(stub.write_sources(tmp_path / "src", 2))
    return built.store


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"measures":', b'"measured":'),
        (b'"source":{"fps":25.0}', b'"source":[25.0000000]'),
        (b'"split":"train"', b'"split":7      '),
    ],
)
@pytest.mark.parametrize("pictures", [0, 3])
def test_a_description_without_what_the_page_shows_is_damaged(
    old: bytes, new: bytes, pictures: int, store: LocalStore
) -> None:
    config = SurveyConfig(clips=3, pictures=pictures)
    assert survey(store, config).drawn == 3
    for key in list(store.keys("shards/")):
        data = store.read(key)
        assert old in data
        assert len(old) == len(new)
        store.write(key, data.replace(old, new))
    with pytest.raises(ValueError, match=r"shards/000000-000\.tar: the description of sample v00\S+ is damaged"):
        survey(store, config)

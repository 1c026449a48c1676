"""What a build refuses to be told, and which settings two runs must agree on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from data_pipeline.build.config import RunConfig, ShardsConfig
from data_pipeline.cut.config import ClipConfig
from data_pipeline.dataset.config import Duplicates
from data_pipeline.source.config import CaptionConfig, SourcesConfig, SplitConfig


@pytest.mark.parametrize(
    ("kind", "last", "beyond", "message"),
    [
        (SplitConfig, {"val": 0.0, "test": 0.0}, {"val": -0.01}, r"split\.val=-0\.01"),
        (SplitConfig, {"val": 0.5, "test": 0.49}, {"test": -0.01}, r"split\.test=-0\.01"),
        (SplitConfig, {"val": 0.99}, {"val": 0.5, "test": 0.5}, "must leave a share for training"),
        (SourcesConfig, {"attempts": 1, "redirects": 0}, {"attempts": 0}, r"sources\.attempts=0 must be at least 1"),
        (SourcesConfig, {"timeout_s": 0.1}, {"redirects": -1}, r"sources\.redirects not negative"),
        (SourcesConfig, {"max_bytes": 1}, {"max_bytes": 0}, r"sources\.max_bytes must be positive"),
        (SourcesConfig, {"deadline_s": 0.1}, {"deadline_s": 0.0}, r"sources\.deadline_s"),
        (SourcesConfig, {"timeout_s": 0.1}, {"timeout_s": 0.0}, r"sources\.timeout_s"),
        (RunConfig, {"max_failed": 1}, {"max_failed": 0}, r"run\.max_failed=0 must be at least 1"),
        (RunConfig, {"attempts": 1, "cpus": 0, "in_flight": 0}, {"attempts": 0}, r"run\.attempts must be at least 1"),
        (RunConfig, {"cpus": 1}, {"cpus": -1}, r"run\.cpus and run\.in_flight must not be negative"),
        (RunConfig, {"in_flight": 1}, {"in_flight": -1}, r"run\.in_flight must not be negative"),
        (RunConfig, {"unit_cpus": 0.1, "unit_memory_bytes": 0}, {"unit_cpus": 0.0}, r"run\.unit_cpus must be positive"),
        (RunConfig, {"unit_memory_bytes": 1}, {"unit_memory_bytes": -1}, r"run\.unit_memory_bytes not negative"),
        (RunConfig, {"downloads": 0}, {"downloads": -1}, r"run\.downloads and run\.scratch_bytes must not be negative"),
        (RunConfig, {"scratch_bytes": 0}, {"scratch_bytes": -1}, r"run\.downloads and run\.scratch_bytes must not"),
        (RunConfig, {"cut_timeout_s": 0.1}, {"cut_timeout_s": 0.0}, r"run\.cut_timeout_s"),
        (RunConfig, {"cut_memory_bytes": 1}, {"cut_memory_bytes": 0}, r"run\.cut_memory_bytes"),
        (RunConfig, {"progress_s": 0.1}, {"progress_s": 0.0}, r"run\.progress_s=.* must be positive"),
        (RunConfig, {"scratch": "s3:/a"}, {"scratch": "s3://a/b"}, r"run\.scratch=s3://a/b is an address; name a"),
        (ShardsConfig, {"unit_rows": 0}, {"unit_rows": -1}, r"unit_rows=-1 must be between 0"),
        (ShardsConfig, {"unit_rows": 1_000_000}, {"unit_rows": 1_000_001}, r"unit_rows=1000001 .* 1000000"),
        (ShardsConfig, {"near_duplicates": 0}, {"near_duplicates": -1}, r"near_duplicates=-1 must be null"),
        (ShardsConfig, {"near_duplicates": 7}, {"near_duplicates": 8}, r"near_duplicates=8 .* 0 to 7 bits"),
        (ShardsConfig, {"shard_bytes": 1_000_000}, {"shard_bytes": 999_999}, r"shard_bytes=999999 .* 1000000"),
        (CaptionConfig, {"min_characters": 0}, {"min_characters": -1}, r"caption\.min_characters=-1"),
        (CaptionConfig, {"min_letters": 0.0}, {"min_letters": -0.1}, r"caption\.min_letters=-0\.1 is a share"),
        (CaptionConfig, {"min_letters": 1.0}, {"min_letters": 1.1}, r"caption\.min_letters=1\.1 is a share"),
        (ClipConfig, {"max_damage": 1.0, "max_aspect": 1.0}, {"max_damage": 1.1}, r"clip\.max_damage=1\.1 is a share"),
        (ClipConfig, {"max_frozen": 0.0}, {"max_frozen": -0.1}, r"clip\.max_frozen=-0\.1 is a share"),
        (ClipConfig, {"min_seconds": 5.0}, {"min_seconds": 5.1}, r"clip\.max_seconds=10\.0 must be at least twice"),
        (ClipConfig, {"crf": 51, "jpeg_quality": 31}, {"crf": 52}, r"clip\.crf=52 must lie between 0 and 51"),
        (ClipConfig, {"crf": 0, "jpeg_quality": 1}, {"jpeg_quality": 0}, r"clip\.jpeg_quality=0 .* 1 and 31"),
        (ClipConfig, {"bframes": 16}, {"bframes": 17}, r"clip\.bframes=17 must lie between 0 and 16"),
        (ClipConfig, {"min_motion": 5.0, "max_motion": 5.0}, {"gop": 0}, r"clip\.gop=0 must be at least 1"),
    ],
)
def test_a_limit_itself_is_allowed_and_what_is_beyond_it_names_its_key(
    kind: Any, last: dict[str, Any], beyond: dict[str, Any], message: str
) -> None:
    kind(**last)
    with pytest.raises(ValueError, match=message):
        kind(**beyond)


def test_two_runs_agree_on_what_changes_the_dataset_and_on_nothing_else() -> None:
    """Where the work is done, from where it is fetched and how often it is tried changes no byte."""
    settings = ShardsConfig(source="a", output="b").plan_settings()
    sections = {"clip": ClipConfig, "caption": CaptionConfig, "split": SplitConfig}
    names = {f"{section}.{item.name}" for section, kind in sections.items() for item in fields(kind)}
    assert set(settings) == names | {"duplicates", "near_duplicates", "unit_rows", "shard_bytes"}
    other = ShardsConfig(source="x", output="y", sources=SourcesConfig(attempts=1), run=RunConfig(attempts=1, cpus=3))
    assert other.plan_settings() == settings
    changed = ShardsConfig(source="a", output="b", duplicates=Duplicates.MERGE, clip=ClipConfig(crf=20))
    assert {key for key, value in changed.plan_settings().items() if value != settings[key]} == {
        "duplicates",
        "clip.crf",
    }


def test_places_may_be_written_as_file_addresses_and_other_ones_are_refused_by_key() -> None:
    config = ShardsConfig(source="file:///a/b.csv", output="file:/c", run=RunConfig(scratch="file:///d"))
    assert (config.source, config.output, config.run.scratch) == ("/a/b.csv", "/c", "/d")
    for key in ("source", "output"):
        with pytest.raises(ValueError, match=f"^{key}='file://host/a' is no file of this machine"):
            ShardsConfig(**{"source": "s3://a/b.csv", "output": "s3://a/b"} | {key: "file://host/a"})

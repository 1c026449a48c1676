"""The configuration of reading: the shipped files load, every key has a meaning, impossible values name their key."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from data_pipeline.read.config import DataConfig, LatentDataConfig
from trainer.config.keys import config_keys
from trainer.config.loader import load_config, to_yaml

FILES = sorted((Path(__file__).parents[3] / "configs" / "data").glob("*.yaml"))


@dataclass(kw_only=True)
class Run:
    """A configuration that holds a `data:` part, as the trainer's does."""

    data: DataConfig = field(default_factory=DataConfig)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_shipped_files_load_and_say_what_they_are_for(path: Path, tmp_path: Path) -> None:
    config = load_config(Run, [path], ["data.shards=somewhere"])
    assert config.data.shards == "somewhere"
    assert path.read_text().startswith("# Purpose:")
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(Run, [tmp_path / "again.yaml"]) == config


@pytest.mark.parametrize("config", [DataConfig, LatentDataConfig])
def test_every_key_has_a_meaning(config: type) -> None:
    assert FILES
    assert all(note for _, _, _, note in config_keys(config))


def test_latents_have_the_keys_that_mean_something_for_them_with_the_same_checks() -> None:
    keys = {kind: {key for key, _, _, _ in config_keys(kind)} for kind in (DataConfig, LatentDataConfig)}
    assert keys[LatentDataConfig] - keys[DataConfig] == {"mirrored", "sample", "normalize", "text"}
    of_clips = {"frames", "frame_counts", "frame_shares", "frame_stride", "image_size", "resize", "hflip"}
    assert keys[DataConfig] - keys[LatentDataConfig] == of_clips
    for change, message in (
        ({"workers": -1}, r"data\.workers=-1 must be at least 0"),
        ({"seed": 2**63}, r"data\.seed"),
        ({"lanes": 3}, r"data\.lanes=3 neither divides data\.global_batch=8"),
        ({"split": "dev"}, r"data\.split='dev' is not a split"),
        ({"shards": ""}, r"data\.shards= is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            LatentDataConfig(**{"shards": "x", **change})  # type: ignore[arg-type]


def test_shards_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"data\.shards must be set"):
        load_config(Run)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.workers=-1", r"data\.workers=-1 must be at least 0"),
        ("data.prefetch=0", r"data\.prefetch=0 must be at least 1"),
        ("data.seed=9223372036854775808", r"data\.seed"),
        ("data.lanes=3", r"data\.lanes=3 neither divides data\.global_batch=8 .* or to 0 for 8"),
        ("data.resize=100", r"data\.resize=100 is smaller than data\.image_size=224"),
        (
            "data.frame_counts=[4,8]",
            r"data\.frame_counts=\[4, 8\] must rise .* to data\.frames=16, .* data\.frame_counts=\[8, 16\]",
        ),
        ("data.frame_counts=[8,8,16]", r"without repeats"),
        ("data.frame_counts=[0,16]", r"must rise from at least 1"),
        ("data.frame_shares=[1]", r"data\.frame_shares=\[1\.0\] must hold a positive number for each of .*=\[\]"),
        ("data.image_sise=3", r"did you mean 'data\.image_size'"),
    ],
)
def test_impossible_values_name_their_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Run, [], ["data.shards=x", override])


@pytest.mark.parametrize("shares", ["[1,0]", "[1,-1]", "[1,1,1]"])
def test_shares_are_a_positive_number_for_each_count(shares: str) -> None:
    with pytest.raises(ValueError, match=r"data\.frame_shares=.* must hold a positive number"):
        load_config(Run, [], ["data.shards=x", "data.frame_counts=[8,16]", f"data.frame_shares={shares}"])

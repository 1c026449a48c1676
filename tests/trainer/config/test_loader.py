"""The loader against hand-written YAML: precedence, refusals with the remedy, help taken from the comments."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launch.help_text import keys_help
from trainer.config.keys import config_keys
from trainer.config.loader import changed_keys, load_config, to_yaml


@dataclass(kw_only=True)
class Inner:
    # how far a step goes,
    # in parameter units
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)  # running averages

    def __post_init__(self) -> None:
        betas = self.betas  # a local of the same name must not change the help
        assert len(betas) == 2
        if self.lr <= 0:
            raise ValueError(f"inner.lr={self.lr} must be positive; set inner.lr above 0")


@dataclass(kw_only=True)
class Outer:
    shards: str = "???"  # where the shards are
    steps: int = 10  # how many
    inner: Inner = field(default_factory=Inner)


def test_command_line_wins_over_the_last_file_over_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("steps: 1\ninner: {lr: 0.5}\nshards: x\n")
    (tmp_path / "b.yaml").write_text("steps: 2\n")
    config = load_config(Outer, [tmp_path / "a.yaml", tmp_path / "b.yaml"], ["inner.betas=[0,0.5]"])
    assert (config.steps, config.inner.lr, config.shards) == (2, 0.5, "x")
    assert tuple(config.inner.betas) == (0, 0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shards=a", "inner.lrr=1"], r"unknown key 'inner.lrr'; did you mean 'inner.lr'"),
        (["shards=a", "steps=many"], r"steps.*many"),
        (["shards=a", "inner.lr=-1"], r"inner.lr=-1.0 must be positive"),
        (["steps=3"], r"shards must be set"),
        (["shards"], r"not of the form key=value"),
    ],
)
def test_wrong_input_names_the_key_and_the_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Outer, overrides=overrides)


def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml cannot be read"):
        load_config(Outer, [tmp_path / "nowhere.yaml"])
    (tmp_path / "bad.yaml").write_text("a: [1,\n")
    with pytest.raises(ValueError, match=r"bad\.yaml is not valid YAML"):
        load_config(Outer, [tmp_path / "bad.yaml"])


def test_resolved_yaml_repeats_the_configuration(tmp_path: Path) -> None:
    config = load_config(Outer, overrides=["shards=a", "inner.lr=0.25"])
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert load_config(Outer, [tmp_path / "run.yaml"]) == config


def test_help_carries_the_comments_of_the_fields() -> None:
    rows = {key: (default, note) for key, _, default, note in config_keys(Outer)}
    assert rows["shards"] == ("required", "where the shards are")
    assert rows["inner.betas"][1] == "running averages"
    assert rows["inner.lr"] == ("0.1", "how far a step goes, in parameter units")
    assert "inner.betas=[0.9,0.99]" in keys_help(Outer)


def test_words_for_what_differs_from_the_defaults_repeat_the_configuration() -> None:
    config = load_config(Outer, [], ["shards=s3://x/y", "inner.betas=[0.9,0.5]", "steps=10", "inner.lr=1e-3"])
    words = changed_keys(config)
    assert words == ["shards=s3://x/y", "inner.lr=0.001", "inner.betas=[0.9,0.5]"]
    assert load_config(Outer, [], words) == config


@pytest.mark.parametrize("word", ["inner.lr=.nan", "inner.lr=.inf", "inner.betas=[0.9,-.inf]"])
def test_numbers_must_be_finite(word: str) -> None:
    with pytest.raises(ValueError, match=rf"{word.split('=')[0]}=.* must be finite"):
        load_config(Outer, [], ["shards=x", word])

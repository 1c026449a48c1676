"""The loader against hand-written YAML: precedence, refusals with the remedy, help taken from the comments."""

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from launch.help_text import keys_help
from model.dit_config import Conditioning
from trainer.config.keys import config_keys
from trainer.config.loader import changed_keys, load_config, to_yaml
from trainer.config.train import TrainConfig
from trainer.config.values import type_name


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


class Shape(Enum):
    round = "round"
    square = "square"


@dataclass(kw_only=True)
class Outer:
    shards: str = "???"  # where the shards are
    steps: int = 10  # how many
    micro_batch: int = 1  # clips
    verbose: bool = False  # whether
    shape: Shape = Shape.round  # which
    limit: int | None = None  # at most
    counts: list[int] = field(default_factory=list)  # several
    inner: Inner = field(default_factory=Inner)
    other: Inner = field(default_factory=Inner)


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


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (int, "int"),
        (int | None, "int or null"),
        (list[float], "list of float"),
        (tuple[float, float], "2 x float"),
        (dict[str, str], "names with values"),
        (Conditioning, "none|class|text"),  # the values that a file has, and not Python's names of them
    ],
)
def test_types_are_named_as_a_file_has_them(kind: Any, shown: str) -> None:
    assert type_name(kind) == shown


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


@pytest.mark.parametrize(
    "text",
    [
        *("007", "1e3", "12:34:56", "yes", "12e456", "0x10", "lr sweep #1", "null", "", "@x", "%d", "`x`", "a=b"),
        *("*.safetensors", "${HOME}/x", "[1", "'quoted'", "a: b", " space ", "日本"),
        *("???", "!!python/object:os.system", f"{10**30}"),
    ],
)
def test_the_text_of_a_string_key_is_taken_as_it_stands_and_written_so_that_it_comes_back(
    tmp_path: Path, text: str
) -> None:
    config = load_config(Outer, [], [f"shards={text}"])
    assert config.shards == text
    (tmp_path / "run.yaml").write_text(to_yaml(config), "utf-8")
    assert load_config(Outer, [tmp_path / "run.yaml"]) == config
    assert load_config(Outer, [], changed_keys(config)) == config


@pytest.mark.parametrize("text", ["007", "1e3", "yes", "12:34", "'null'", "nullable", "''", ""])
def test_a_file_gives_a_string_key_the_text_that_stands_there(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(f"shards: {text}  # a comment\n")
    assert load_config(Outer, [tmp_path / "a.yaml"]).shards == text.strip("'")


@pytest.mark.parametrize("text", ["~", "null", "Null", "NULL"])
def test_a_file_cannot_mean_nothing_and_name_something(tmp_path: Path, text: str) -> None:
    """As a name, `~` would be the home directory, which a run would upload its checkpoints to."""
    (tmp_path / "a.yaml").write_text(f"steps: 1\nshards: {text}\n")
    message = rf"a\.yaml line 2: shards={text} must be a text: write '' for none, or quotes around a name"
    with pytest.raises(ValueError, match=message):
        load_config(Outer, [tmp_path / "a.yaml"])


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("inner: {lr: 1e-3}", "inner.lr", 0.001),
        ("inner: {lr: '1e-3'}", "inner.lr", 0.001),
        ("inner: {lr: 1E-3}", "inner.lr", 0.001),
        ("inner: {lr: 5}", "inner.lr", 5.0),
        ("inner: {lr: .5}", "inner.lr", 0.5),
        ("steps: 1_000", "steps", 1000),
        ("steps: 0x10", "steps", 16),
        (f"steps: {2**63 - 1}", "steps", 2**63 - 1),
        ("counts: !!seq [!!int 1, 2]", "counts", [1, 2]),
        ("inner: &a {lr: 3}\nother: *a", "other.lr", 3.0),
        ("verbose: on", "verbose", True),
        ("verbose: False", "verbose", False),
        ("shape: square", "shape", Shape.square),
        ("limit: 3", "limit", 3),
        ("limit: ~", "limit", None),
        ("limit:", "limit", None),
        ("counts: [1, 2]", "counts", [1, 2]),
        ("inner: {betas: [0, 1e-1]}", "inner.betas", (0.0, 0.1)),
        ("inner:", "inner.lr", 0.1),
        ("# nothing", "steps", 10),
        ("", "steps", 10),
    ],
)
def test_what_a_file_may_hold(tmp_path: Path, text: str, key: str, value: Any) -> None:
    (tmp_path / "a.yaml").write_text(text + "\n")
    found: Any = load_config(Outer, [tmp_path / "a.yaml"], ["shards=x"])
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", r"a\.yaml line 1: its top must be keys with values, like shards: \.\.\."),
        ("just words", r"a\.yaml line 1: its top must be keys"),
        ("steps: 1\ninner: 5", r"a\.yaml line 2: inner=5: inner is a section of keys, like lr: \.\.\."),
        ("inner: [1]", r"a\.yaml line 1: inner=\[1\]: inner is a section of keys"),
        ("inner:\n  betas: [0.9]", r"a\.yaml line 2: inner\.betas=\[0\.9\] must be a list of 2 values, not 1"),
        ("inner: {betas: 1}", r"inner\.betas=1 must be a list like \[float, float\]"),
        ("inner: {betas: [0.9, x]}", r"inner\.betas=\[0\.9,x\] must be a number"),
        ("inner.lr: 1e-3", r"unknown key 'inner\.lr'; in a file write inner: \{lr: \.\.\.\}"),
        ("steps: {a: 1}", r"steps=\{a: 1\} must be one value \(int\)"),
        ("steps: 1.5", r"steps=1\.5 must be a whole number"),
        ("steps: 010", r"steps=010 must be a whole number"),
        ("steps: 1:30", r"steps=1:30 must be a whole number"),
        ("steps:", r"steps= must have a value \(int\)"),
        ("verbose: maybe", r"verbose=maybe must be true or false"),
        ("shape: oval", r"shape=oval must be one of round, square"),
        ("counts: 4", r"counts=4 must be a list like \[int\]"),
        ("inner: {lr: fast}", r"inner\.lr=fast must be a number"),
        ("inner: {lr: true}", r"inner\.lr=true must be a number"),
        ("steps: 1\nsteps: 2", r"a\.yaml line 2: steps is set twice"),
        ("inner: {lr: 1}\ninner: {lr: 2}", r"a\.yaml line 2: inner is set twice"),
        ("steps: 1\n---\nsteps: 2", r"a\.yaml is not valid YAML: line 2"),
        ("a: [1,\n", r"a\.yaml is not valid YAML: line \d, column 1: "),
        ("shards: *nowhere", r"a\.yaml is not valid YAML: line 1, column 9: found undefined alias"),
        ("steps: 1\nshards: !!python/object:a.b x", r"a\.yaml line 2: the tag !!python/object:a\.b is not understood"),
        ("inner: !!python/object/apply:a\n  lr: 1", r"a\.yaml line 1: the tag !!python/object/apply:a is not"),
        ("counts: [1, !mine 2]", r"a\.yaml line 1: the tag !mine is not understood; write the value without a tag"),
        ("? !!python/tuple [1]\n: 2", r"a\.yaml line 1: the tag !!python/tuple is not understood"),
        ("steps: 1\ncounts: &a [*a]", r"a\.yaml line 2: the value contains itself through an alias"),
        (f"steps: {10**30}", r"a\.yaml line 1: steps=10{30} must lie between -\(2\*\*63 - 1\) and 2\*\*63 - 1"),
        ("counts: [-9223372036854775808]", r"counts=\[-9223372036854775808\] must lie between"),
        ('shards: "a\\0b"', r"a\.yaml line 1: shards='a\\x00b' must not hold a NUL byte"),
    ],
)
def test_what_a_file_may_not_hold_is_refused_with_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_config(Outer, [tmp_path / "a.yaml"], ["shards=x"])
    assert "\n" not in str(caught.value)


def test_a_file_in_another_encoding_and_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("steps: 5\nshards: für\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.yaml line 2 holds the byte 0xfc, which is not UTF-8"):
        load_config(Outer, [tmp_path / "latin.yaml"])
    with pytest.raises(ValueError, match=rf"config file {tmp_path} cannot be read: is a folder"):
        load_config(Outer, [tmp_path])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("steps=*x", r"steps=\*x is not valid YAML: line 1, column 1: found undefined alias"),
        ("steps=@x", r"steps=@x is not valid YAML: .*cannot start any token"),
        ("counts=[1", r"counts=\[1 is not valid YAML"),
        (f"counts={'[' * 500}1{']' * 500}", r"counts=\[+\.\.\.: line 1 is nested more than 64 deep"),
        ("counts=[\udcff]", r"counts='\[\\udcff\]' is not valid YAML: it is not UTF-8"),
        ("steps=", r"steps= must have a value"),
        ("steps=5 6", r"steps=5 6 must be a whole number"),
        (f"steps={10**30}", r"steps=10{30} must lie between -\(2\*\*63 - 1\) and 2\*\*63 - 1"),
        (f"steps={'9' * 5000}", r"steps=9{5000} must be a whole number"),
        ("steps=!!python/object:a 5", r"steps=!!python/object:a 5: the tag !!python/object:a is not understood"),
        ("inner..lr=5", r"unknown key 'inner\.\.lr'; did you mean 'inner\.lr' or 'other\.lr'\?"),
        (".steps=5", r"unknown key '\.steps'; did you mean 'steps'\?"),
        ("shards=a\0b", r"shards='a\\x00b' must not hold a NUL byte"),
        ("inner=5", r"inner=5: inner is a section of keys, like inner\.lr=\.\.\."),
        ("inner=", r"inner=: inner is a section"),
        ("steps.x=5", r"unknown key 'steps\.x'; steps is one value, not a section"),
        ("lr=1", r"unknown key 'lr'; did you mean 'inner\.lr' or 'other\.lr'\?"),
        ("inner.lrr=1", r"unknown key 'inner\.lrr'; did you mean 'inner\.lr'\?"),
        ("iner.lr=1", r"unknown key 'iner\.lr'; did you mean 'inner\.lr' or 'other\.lr'\?"),
        ("setps=1", r"unknown key 'setps'; did you mean 'steps'\?"),
        ("batch_size=1", r"unknown key 'batch_size'; did you mean 'micro_batch'\?"),
        ("zebra=1", r"unknown key 'zebra'; --help lists the keys"),
    ],
)
def test_a_wrong_word_is_refused_by_key_in_one_line(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        load_config(Outer, [], ["shards=x", word])
    assert "\n" not in str(caught.value)


def test_defaults_of_the_caller_are_weaker_than_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("shards: x\n")
    defaults = {"shards": "unused", "inner.lr": 0.5}
    config = load_config(Outer, [tmp_path / "a.yaml"], [], defaults)
    assert (config.shards, config.inner.lr, config.steps) == ("x", 0.5, 10)
    assert load_config(Outer, [], ["inner.lr=2"], defaults) == Outer(shards="unused", inner=Inner(lr=2.0))


def test_a_word_may_set_a_whole_section_and_the_last_one_wins() -> None:
    words = ["shards=x", "inner={lr: 1e-3, betas: [0, 0.5]}", "inner.lr=2", "steps=3", "steps=4"]
    config = load_config(Outer, [], words)
    assert (config.inner.lr, config.inner.betas, config.steps) == (2.0, (0.0, 0.5), 4)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("optim.lr=1", "'optim.generator.lr' or 'optim.discriminator.lr'"),
        ("lr=1", "'optim.generator.lr' or 'optim.discriminator.lr'"),
        ("batch_size=8", "'micro_batch' or 'data.global_batch'"),
        ("gan.wieght=0", "'gan.weight'"),
        ("model.strcture.queries=4", "'model.structure.queries'"),
    ],
)
def test_hints_among_the_keys_of_a_training(word: str, meant: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"did you mean {meant}?")):
        load_config(TrainConfig, [], [word])

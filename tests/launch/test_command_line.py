"""Words, files and options of a command line, `--help` with a word, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launch.command_line import Parser, config_parser, parse_overrides
from launch.help_text import keys_help
from launch.option_types import add_device, not_negative, positive_number, seconds, share, whole_number
from launch.words import remedy
from tests.launch.scripts import WITH_KEYS, run
from trainer.config.keys import config_keys
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig


@dataclass(kw_only=True)
class Inner:
    """How it goes."""

    lr: float = 0.1  # how far a step goes, in units that need many words before the line of a terminal is full [> 0]
    steps: int = 5  # how many [>= 1]


@dataclass(kw_only=True)
class Outer:
    """The whole."""

    shards: str = "???"  # where the shards are
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def parser() -> Parser:
    parser = config_parser(Outer, "launch/some.py", "x")
    parser.add_argument("--output")
    return parser


@pytest.mark.parametrize(
    ("words", "files", "overrides"),
    [
        (["--config", "a.yaml", "b.yaml"], ["a.yaml", "b.yaml"], []),
        (["--config", "a.yaml", "--config", "b.yaml"], ["a.yaml", "b.yaml"], []),
        (["--config=a.yaml", "--config", "b.yaml", "c.yaml"], ["a.yaml", "b.yaml", "c.yaml"], []),
        (["--config", "a.yaml", "x=1", "b.yaml"], ["a.yaml", "b.yaml"], ["x=1"]),
        (["--config", "runs/lr=1e-3/config.yaml"], ["runs/lr=1e-3/config.yaml"], []),
        (["--config", "a.yaml", "runs/lr=1e-3/config.yaml", "x=1"], ["a.yaml", "runs/lr=1e-3/config.yaml"], ["x=1"]),
        (["--config", "lr=1e-3.yaml", "x=1"], ["lr=1e-3.yaml"], ["x=1"]),
        (["--config", "../a=b.yaml", "--output", "o", "x=1"], ["../a=b.yaml"], ["x=1"]),
        (["x=1", "--config", "a.yaml", "x=2", "--output", "o", "x=3"], ["a.yaml"], ["x=1", "x=2", "x=3"]),
        (["--output", "o", "x=1", "--config", "a.yaml", "x=2"], ["a.yaml"], ["x=1", "x=2"]),
        (["x=lr sweep #1", "y=a=b", "z="], [], ["x=lr sweep #1", "y=a=b", "z="]),
        (["--output", "a=b", "x=1"], [], ["x=1"]),
        (["--config", "a.yaml", "gan..start=3"], ["a.yaml"], ["gan..start=3"]),
        (["--config", "a.yaml", "in ner.lr=3", "9=x"], ["a.yaml"], ["in ner.lr=3", "9=x"]),
        (["--config", "a.yaml", "lr=1.yaml"], ["a.yaml"], ["lr=1.yaml"]),  # there is no such file
        (["--config", "file:///a.yaml", "file:/b=c.yaml", "x=file:/d"], ["/a.yaml", "/b=c.yaml"], ["x=file:/d"]),
        (["--config", "a.yaml", "./lr=1.yaml"], ["a.yaml", "./lr=1.yaml"], []),
        (["--config", "a.yaml", f"x=[{'1,' * 500}]"], ["a.yaml"], [f"x=[{'1,' * 500}]"]),  # longer than a file's name
    ],
)
def test_files_and_words_keep_their_order_wherever_they_stand(
    parser: Parser, words: list[str], files: list[str], overrides: list[str]
) -> None:
    found = parse_overrides(parser, words)
    assert (found.config, found.overrides) == (files, overrides)


@pytest.mark.parametrize("word", ["lr=1.yaml", "inner..lr=1/b.yaml", "steps=3"])
def test_a_word_behind_config_that_is_the_name_of_a_file_is_that_file(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / word).parent.mkdir(exist_ok=True)
    (tmp_path / word).write_text("steps: 1\n")
    found = parse_overrides(parser, ["x=1", "--config", "a.yaml", word, "y=2"])
    assert (found.config, found.overrides) == (["a.yaml", word], ["x=1", "y=2"])
    if "/" not in word:
        assert parse_overrides(parser, [word]).overrides == [word], "only behind --config"


def test_a_repeated_config_composes_like_one_with_several_files(parser: Parser, tmp_path: Path) -> None:
    (tmp_path / "lr=1").mkdir()
    first, second = tmp_path / "a.yaml", tmp_path / "lr=1" / "b.yaml"
    first.write_text("shards: x\ninner: {lr: 0.5, steps: 1}\n")
    second.write_text("inner: {steps: 2}\n")
    configs = []
    for words in (["--config", str(first), str(second)], ["--config", str(first), "--config", str(second)]):
        found = parse_overrides(parser, words)
        configs.append(load_config(Outer, found.config, found.overrides))
    assert configs[0] == configs[1] == Outer(shards="x", inner=Inner(lr=0.5, steps=2))


def test_an_option_of_several_files_takes_them_as_config_does(parser: Parser) -> None:
    parser.add_argument("--source", action="append")
    words = ["--source", "a.csv", "b/*.csv", "steps=3", "c.csv", "--config", "x.yaml", "--source", "d=e.csv"]
    found = parse_overrides(parser, words, several=("--config", "--source"))
    assert found.source == ["a.csv", "b/*.csv", "c.csv", "d=e.csv"]
    assert (found.config, found.overrides) == (["x.yaml"], ["steps=3"])


@pytest.mark.parametrize("word", ["--data.global_batch=3", "--data.global-batch=3", "--data.global-batch"])
def test_a_setting_that_is_written_as_an_option_is_told_as_a_word(word: str) -> None:
    known = ["data.global_batch", "steps"]
    assert remedy(word, known) == "a setting is a word without dashes, data.global_batch=VALUE"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "expected one argument"),
        (["--config", "--output", "o"], "expected one argument"),
        (["--steps", "3"], "'--steps' is not understood; settings are key=value words; did you mean 'inner.steps'?"),
        (["--shards=x"], "'--shards=x' is not understood; a setting is a word without dashes, shards=VALUE"),
        (["shards"], "'shards' is not understood; settings are key=value words"),
        (["--outp", "o"], "'--outp' is not understood"),
        (["=5"], "'=5' is not understood"),
        (["a/b=5"], "'a/b=5' is not understood"),
        (["--config", ""], "argument --config: is empty; name something, or leave it away"),
        (["--config="], "argument --config: is empty; name something"),
        (["--config", "a.yaml", ""], "argument --config: is empty; name something"),
        (["--config", "file://host/a"], "argument --config: 'file://host/a' is no file of this machine"),
        (["--config", "a\0b"], "argument --config: '--config=a\\x00b' holds a NUL byte; remove it"),
        (["--output", "a\0b"], "argument --output: 'a\\x00b' holds a NUL byte; remove it"),
        (["--output", "a", "--output=b"], "argument --output: is given twice"),
    ],
)
def test_what_is_no_word_is_refused_in_one_line(
    parser: Parser, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_overrides(parser, words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("launch/some.py: ")
    assert message in line


def test_a_refusal_is_printed_by_one_rank_of_each_node(
    parser: Parser, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """RANK 8 with LOCAL_RANK 0 is the first of the second node: it speaks, its neighbour does not."""
    for rank, local_rank, lines in (("8", "0", 1), ("9", "1", 0)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit):
            parse_overrides(parser, ["--nothing"])
        assert len(capsys.readouterr().err.splitlines()) == lines


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_a_training_that_is_refused_on_another_node_says_so_once(local_rank: str, tmp_path: Path) -> None:
    place = {"RANK": f"{8 + int(local_rank)}", "LOCAL_RANK": local_rank, "WORLD_SIZE": "16"}
    done = run("launch/train.py", "--config", "/nonexistent/mine.yaml", f"output={tmp_path}/x", environment=place)
    assert done.returncode == 2
    expected = "launch/train.py: config file /nonexistent/mine.yaml cannot be read: No such file or directory\n"
    assert done.stderr == (expected if local_rank == "0" else "")


def test_numbers_and_devices_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="p")
    parser.add_argument("--batch", type=whole_number(1))
    parser.add_argument("--share", type=positive_number)
    parser.add_argument("--part", type=share)
    parser.add_argument("--wait", type=seconds)
    parser.add_argument("--noise", type=not_negative)
    add_device(parser)
    good = parser.parse_args(["--batch", "3", "--share", "inf", "--device", "cuda:1"])
    assert (good.batch, good.share, good.device) == (3, float("inf"), "cuda:1")
    assert parser.parse_args([]).device == "auto"
    ends = parser.parse_args(["--batch", "1", "--part", "1", "--wait", "0", "--noise", "0"])
    assert (ends.batch, ends.part, ends.wait, ends.noise) == (1, 1, 0, 0), "the ends of their ranges"
    for option, text in [
        *(("--batch", text) for text in ("0", "-1", "1.5", "x", "", "9" * 19, "9" * 5000)),
        *(("--share", text) for text in ("0", "-1", "nan", "x")),
        *(("--part", text) for text in ("0", "1.01", "inf", "nan", "x")),
        *((option, text) for option in ("--wait", "--noise") for text in ("-0.1", "inf", "nan", "x")),
        *(("--device", text) for text in ("gpu", "cuda:", "CUDA", "0")),
    ]:
        with pytest.raises(SystemExit):
            parser.parse_args([f"{option}={text}"])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"p: argument {option}: {text}"), line


# ---- --help ---------------------------------------------------------------------------------------------------------


def test_help_groups_the_keys_and_wraps_to_the_terminal() -> None:
    text = keys_help(TrainConfig, width=80)
    assert max(map(len, text.splitlines())) <= 80
    keys = [line.split("=")[0].strip() for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
    assert keys == [key for key, *_ in config_keys(TrainConfig)]
    titles = [line.partition(":")[0] for line in text.splitlines() if line[:1] not in ("", " ") and ": " in line]
    for section in ("model", "model.structure", "data", "loss", "gan", "optim.generator", "zero", "watchdog"):
        assert titles.count(section) == 1


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (["inner"], {"inner.lr", "inner.steps"}),
        (["lr"], {"inner.lr"}),
        (["inner.steps=3"], {"inner.steps"}),
        (["shards", "lr"], {"shards", "inner.lr"}),
        (["STEPS"], {"inner.steps"}),
        (["terminal"], {"inner.lr"}),  # a word of its meaning
        (["many"], {"inner.lr", "inner.steps"}),
        (["inner", "many"], {"inner.lr", "inner.steps"}),
    ],
)
def test_help_with_words_shows_only_what_they_name(wanted: list[str], shown: set[str]) -> None:
    text = keys_help(Outer, wanted)
    assert {key for key, *_ in config_keys(Outer) if f"{key}=" in text} == shown


def test_settings_behind_a_word_of_help_change_nothing(parser: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for words in (["inner"], ["inner", "shards=x"], ["shards=x", "inner"]):
        with pytest.raises(SystemExit) as ended:
            parse_overrides(parser, ["-h", *words])
        assert ended.value.code is None or ended.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown == [f"{keys_help(Outer, ['inner'])}\n"] * 3


def test_a_word_of_help_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"did you mean shards\?"):
        keys_help(Outer, ["shrads"])
    with pytest.raises(ValueError, match=r"no key has it in its name or meaning"):
        keys_help(Outer, ["termin"])  # only a part of a word


@pytest.mark.parametrize("script", WITH_KEYS)
def test_help_of_the_scripts_takes_a_word(script: str) -> None:
    sections = {"launch/build_shards.py": "clip", "launch/encode_latents.py": "windows"}
    sections |= {"launch/encode_text.py": "run"}
    section = (sections | {"launch/train_diffusion.py": "dit"}).get(script, "gan")
    done = run(script, "--help", section)
    assert (done.returncode, done.stderr) == (0, "")
    entries = [line for line in done.stdout.splitlines() if line.startswith("  ") and line[2] != " "]
    assert len(entries) > 5
    assert all(line.startswith(f"  {section}.") for line in entries)
    everything = run(script, "--help").stdout
    assert "--output" in everything or script in ("launch/train.py", "launch/train_diffusion.py", "launch/estimate.py")
    assert all(line in everything for line in entries)
    assert max(map(len, everything.splitlines())) <= 120  # COLUMNS is 100; a docstring's lines are not wrapped again
    assert run(script, "--help", "zebra").returncode == 2

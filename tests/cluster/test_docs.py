"""What docs/cluster.md tells a reader to type is understood by the programs it is typed to."""

from __future__ import annotations

import re
import shlex

import pytest

from launch.cluster.node import parse
from tests.cluster.host import REPOSITORY
from trainer.config import TrainConfig
from trainer.config_loader import config_parser, load_config, parse_overrides

TEXT = (REPOSITORY / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)


def commands(word: str) -> list[list[str]]:
    """Complete commands that contain `word`, split as the shell does; those that end in `...` are left out."""
    lines = "\n".join(body for kind, body in BLOCKS if kind == "bash").replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if word in line and "..." not in line]


def test_settings_of_every_training_command_make_a_valid_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = [*commands("deepspeed --hostfile"), *commands("sbatch --nodes")]
    assert len(found) == 2
    for words in found:
        script = next(n for n, word in enumerate(words) if word.startswith("launch/"))
        arguments = parse_overrides(config_parser(TrainConfig, ""), words[script + 1 :])
        config = load_config(TrainConfig, arguments.config, arguments.overrides)
        assert config.split_batch(32) == (6, 1)  # four nodes of eight


def test_options_of_node_py() -> None:
    (words,) = [
        shlex.split(line)
        for kind, body in BLOCKS
        if kind == "bash"
        for line in body.replace("\\\n", " ").splitlines()
        if "node.py" in line
    ]
    assert parse(words[2:], {}).nodes == 4


def test_hostfile_and_environment_file_are_read_by_deepspeed() -> None:
    from deepspeed.launcher.runner import _parse_hostfile

    hostfile = next(body for _, body in BLOCKS if "slots=" in body)
    assert dict(_parse_hostfile(hostfile.splitlines())) == {f"node-{number}": 8 for number in range(4)}
    environment = next(body for _, body in BLOCKS if body.startswith("AWS_ACCESS_KEY_ID="))
    # the launcher splits every line at its first "=": an empty line or a comment would stop it
    assert all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in environment.splitlines())


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"\b(?:launch|configs|docs)/[\w/.-]+\.(?:py|yaml|sbatch|md)\b", TEXT))
    named |= {
        f"launch/cluster/kubernetes/{name}"
        for name in re.findall(r"`(train\.yaml|build_shards\.yaml|Dockerfile)`", TEXT)
    }
    assert named
    assert {name for name in named if not (REPOSITORY / name).exists()} == set()

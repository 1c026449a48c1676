"""What the documents and the files of launch/cluster tell a reader to type is understood by what it is typed to."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launch.cluster.node import parse
from launch.command_line import config_parser, parse_overrides
from tests.cluster.host import REPOSITORY
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

TEXT = (REPOSITORY / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, flags=re.DOTALL)
CLUSTER = sorted(
    path for path in (REPOSITORY / "launch" / "cluster").rglob("*") if path.is_file() and path.suffix != ".pyc"
)
DOCUMENTS = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("cluster*.md")),
    *sorted((REPOSITORY / "docs").glob("training*.md")),
    *CLUSTER,
]
GPUS = 8  # a node's, in all examples


def commands(path: Path) -> list[list[str]]:
    """Complete commands that train, split as the shell does; those with `...` are left out."""
    lines = re.sub(r"^#? *", "", path.read_text(), flags=re.MULTILINE)  # indented in a document, or in a comment
    lines = re.sub(r"\\\n", " ", lines)
    wanted = re.findall(
        r"^(?:deepspeed|sbatch|python) .*launch/(?:train\.py|cluster/slurm/train\.sbatch).*", lines, re.MULTILINE
    )
    return [shlex.split(line, comments=True) for line in wanted if "..." not in line]


def ranks_of(words: list[str]) -> int:
    """How many ranks a command starts."""
    nodes = [int(word.removeprefix("--nodes=")) for word in words if word.startswith("--nodes=")]
    if words[0] == "sbatch":
        script = next(word for word in words if word.endswith(".sbatch"))
        tasks = re.search(r"#SBATCH --ntasks-per-node=(\d+)", (REPOSITORY / script).read_text())
        assert tasks is not None
        return nodes[0] * int(tasks[1])
    if "--hostfile" in words:
        return 4 * GPUS
    if "--num_gpus" in words:
        return int(words[words.index("--num_gpus") + 1])
    return 6 if words[0] == "deepspeed" else 1  # configs/train/paper.yaml: 6 GPUs


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_settings_of_every_training_command_make_a_valid_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    expected = {"README.md": 3, "cluster.md": 2, "train.sbatch": 1}
    found = commands(path)
    assert len(found) >= expected.get(path.name, 0)
    for words in found:
        script = next(n for n, word in enumerate(words) if word.startswith("launch/"))
        arguments = parse_overrides(config_parser(TrainConfig, "train.py", ""), words[script + 1 :])
        config = load_config(TrainConfig, arguments.config, arguments.overrides)
        micro_batch, accumulation = config.split_batch(ranks_of(words))
        if ranks_of(words) == 4 * GPUS:
            assert (micro_batch, accumulation) == (6, 1)  # the paper's batch on each GPU


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


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_file_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    named = set(re.findall(r"(?<![\w/])(?:launch|configs|docs|tests)/[\w/.-]+\.(?:py|yaml|sbatch|md)\b", text))
    assert {name for name in named if not (REPOSITORY / name).exists()} == set()


def test_every_manifest_that_is_named_exists() -> None:
    named = {
        f"launch/cluster/kubernetes/{name}"
        for name in re.findall(r"`(train\.yaml|build_shards\.yaml|Dockerfile)`", TEXT)
    }
    assert named
    assert {name for name in named if not (REPOSITORY / name).exists()} == set()

"""docs/latents.md: its commands are run as they are written, in their order, and its Python reads what they made."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from data_pipeline.build.ray_cluster import start_local_cluster
from launch import encode_latents, verify_shards
from tests.launch.scripts import ROOT
from tests.trainer.latents.corpus import build_clips, save_model

TEXT = (ROOT / "docs" / "latents.md").read_text()
SCRIPTS = {"launch/encode_latents.py": encode_latents.main, "launch/verify_shards.py": verify_shards.main}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    start_local_cluster(1)  # each run starts as many actors as there are cores, and each imports torch
    yield
    ray.shutdown()


def commands() -> list[list[str]]:
    """The words of every command of these scripts."""
    blocks = "".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line) for line in blocks.splitlines() if line.startswith("python launch/")]
    return [words[1:] for words in lines if words[1] in SCRIPTS]


@pytest.mark.slow
def test_the_commands_work_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "runs" / "base" / "model")
    build_clips(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    assert len(commands()) >= 5
    for script, *words in commands():
        without_gpu = ["run.unit_gpus=0", "run.unit_cpus=1"] if "--config" in words else []
        assert SCRIPTS[script]([*words, *without_gpu]) == 0, words
    said = capsys.readouterr().out
    assert "proven: 3 units" in said
    assert "3 of 3 units committed (100.0 %)" in said
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "webdataset" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["tensors"].keys() == {"structure", "dynamics_w", "dynamics_h"}

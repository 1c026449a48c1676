"""docs/training.md and the pages that it names: commands of each are run as they are written, on a small model.

The reader's folder has a configs/train/demo.yaml of its own, whose run is short. Numbers of steps are divided by 100,
and words that make a later command go on with steps are added.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.cases import tiny_config
from trainer.config.loader import to_yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def command(page: str, *words: str) -> str:
    """The first command of a page that has all of the words, on one line."""
    lines = re.sub(r" *\\\n +", " ", (DOCS / page).read_text()).splitlines()
    found = [line.strip() for line in lines if line.startswith("    ") and all(word in line for word in words)]
    assert found, f"{page} has no command with {words}"
    return re.sub(r"\b(\d+)00\b", r"\1", found[0].partition("  #")[0])


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """The reader's folder."""
    for name in ("launch", "model", "trainer", "data_pipeline"):
        (tmp_path / name).symlink_to(ROOT / name)
    clips = make_clips(16, frames=(9, 12)) + make_clips(3, frames=(9,), split="val")
    write_dataset(tmp_path / "SHARDS", split_into_shards(clips, [8]))
    words = (
        "steps=8",
        "gan.start=2",
        "checkpoint.every=4",
        "checkpoint.keep=9",
        "telemetry.log_every=1",
        "data.workers=0",
    )
    config = tiny_config("unused", "data.shards=unused", *words)
    config.output = config.data.shards = "???"
    (tmp_path / "configs" / "train").mkdir(parents=True)
    (tmp_path / "configs" / "train" / "demo.yaml").write_text(to_yaml(config))
    return tmp_path


def run(desk: Path, line: str) -> str:
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(["bash", "-c", line], cwd=desk, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_reader_starts_watches_goes_on_changes_scales_and_debugs(desk: Path) -> None:
    start = command("training.md", "python launch/train.py --config", "output=runs/a")
    assert "a new run of 8 steps in runs/a" in run(desk, start.replace("launch/train.py", "launch/train.py --check"))
    assert not (desk / "runs").exists()
    assert "finished 8 steps; the model is in runs/a/model" in run(desk, start)

    run(desk, command("training_watching.md", "--checkpoints OUTPUT").replace("OUTPUT", "runs/a"))
    assert "<svg" in (desk / "curve" / "report.html").read_text()

    assert "raw weights of step 8" in run(desk, command("training_checkpoints.md", "export.py", "--output models/a"))
    assert "finished 12 steps" in run(desk, f"{start} steps=12")
    assert (desk / "runs/a/model-step-00000008").is_dir()

    back = run(desk, command("training_changes.md", "checkpoint.resume=4"))
    assert "step-00000008 is now" in back
    assert "finished 8 steps" in back
    assert "finished 8 steps" in run(desk, command("training_changes.md", "fork_from=runs/a@4"))
    forked = json.loads((desk / "runs/b/model/provenance.json").read_text())["forked_from"]
    assert forked["step"] == 4

    settings = command("training_scaling.md", "T=").replace("output=runs/a", "output=runs/c")
    run(desk, f"{settings}\n{command('training_scaling.md', 'python $T', 'zero.stage=0')} steps=4")
    two = run(desk, f"{settings}\n{command('training_scaling.md', 'deepspeed --num_gpus 2 $T', 'zero.stage=2')}")
    assert "the checkpoint of 1 rank, ZeRO stage 0, fp32 goes on with 2 ranks, ZeRO stage 2, fp32" in two

    run(desk, f"{command('training_faults.md', 'profile.at=20')} steps=24")
    assert len(list((desk / "runs/a/profile").glob("rank-0000[01].*.pt.trace.json"))) == 2

"""Two real ranks under `deepspeed`: one hangs; the same command again, a loss spike; and what a browser sees of it."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.tools.ports import free_port
from tests.trainer.cases import tiny_config
from trainer.config.loader import to_yaml
from trainer.evaluation.report import evaluate
from trainer.evaluation.run import load_model
from trainer.evaluation.shard_source import ShardSource

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 20
WORDS = [
    *("checkpoint.every=4", "watchdog.step_budget=0.1", "zero.stage=2", "data.workers=1", "ema.decay=0.5"),
    *("gan.start=2", "gan.lecam_weight=0.01", "validation.every=10", "validation.clips=3", "validation.ema=true"),
    *("rollback.factor=30", "rollback.window=4", "rollback.patience=1"),
    *("profile.at=9", "profile.steps=2", "telemetry.log_every=2", "telemetry.samples_every=20"),
]


def launch(folder: Path, settings: Path) -> tuple[int, str]:
    """Exit status and output of the command that a user types, given again after a hang."""
    deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command = [*deepspeed, "tests/launch/hanging.py", "--config", str(settings), f"output={folder / 'run'}"]
    variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HUNG": str(folder / "hung"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=180)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    return process.returncode, text


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str]]]:
    """A run directory, and what the two starts of the run said."""
    folder = tmp_path_factory.mktemp("watching")
    clips = make_clips(20, frames=(9, 12)) + make_clips(5, frames=(9, 17), split="val")
    data = write_dataset(folder / "data", split_into_shards(clips, [8]))
    config = tiny_config("unused", f"data.shards={data}", f"steps={STEPS}", *WORDS)
    config.output = "???"
    (folder / "settings.yaml").write_text(to_yaml(config))
    return folder / "run", [launch(folder, folder / "settings.yaml") for _ in range(2)]


def rows(run: Path, event: str | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row.get("event") == event]


def test_every_rank_of_a_hung_step_leaves_its_stacks_and_the_command_fails(
    attempts: tuple[Path, list[tuple[int, str]]],
) -> None:
    run, [(status, text), _] = attempts
    assert status != 0, text[-3000:]
    reports = [(run / "hangs" / f"rank-{rank:05d}.txt").read_text() for rank in (0, 1)]
    for rank, report in enumerate(reports):
        assert re.search(rf"rank {rank}: step 6 has taken \d+ s, more than its budget", report)
        assert "in step" in report  # of the main thread
        assert f"rank {rank} exits with status 70" in text
    assert "in sleeps_for_ever" in reports[1]
    assert "in sleeps_for_ever" not in reports[0]
    assert "in sleeps_for_ever" in text


def test_the_same_command_goes_on_from_the_last_checkpoint(attempts: tuple[Path, list[tuple[int, str]]]) -> None:
    run, [_, (status, text)] = attempts
    assert status == 0, text[-3000:]
    assert "going on after step 4" in text
    assert [row["step"] for row in rows(run)] == list(range(2, STEPS + 1, 2))


def test_a_spike_takes_both_ranks_back_and_past_its_batches(attempts: tuple[Path, list[tuple[int, str]]]) -> None:
    run, [_, (_, text)] = attempts
    (decision,) = [json.loads(line) for line in (run / "rollbacks.jsonl").read_text().splitlines()]
    assert (decision["step"], decision["found"]) == (12, 16)
    assert decision["epoch"] * 5 + decision["consumed"] // 4 == 16
    assert text.count("rolled back: total_loss was 1e+09 up to step 16") == 1
    assert max(row["total_loss"] for row in rows(run)) < 1e8
    assert [row["step"] for row in rows(run, "rollback")] == [12]


def test_validation_is_that_of_the_exported_average(attempts: tuple[Path, list[tuple[int, str]]]) -> None:
    run, [_, (_, text)] = attempts
    assert [row["step"] for row in rows(run, "validation")] == [10, 20]
    last = rows(run, "validation")[-1]
    source = ShardSource(str(run.parent / "data"), "val", 8, 16, max_windows=3)
    report = evaluate(load_model(run / "model_ema", torch.device("cpu")), source)
    assert last["val_windows"] == report["windows"] == 3
    for name in ("psnr", "ssim"):
        assert last[f"val_{name}"] == pytest.approx(report["metrics"][name]["value"], rel=1e-5)
    assert f"validation after step 20: val_psnr {last['val_psnr']:.4g}" in text


def test_each_rank_traces_the_steps_of_the_window(attempts: tuple[Path, list[tuple[int, str]]]) -> None:
    run, _ = attempts
    for rank in (0, 1):
        (file,) = (run / "profile").glob(f"rank-{rank:05d}.*.pt.trace.json")
        events = json.loads(file.read_text())["traceEvents"]
        names = [event["name"] for event in events if event.get("ph") == "X"]
        assert sum(name.startswith("ProfilerStep#") for name in names) == 2
        assert "aten::addmm" in names


@pytest.fixture(scope="module")
def board(attempts: tuple[Path, list[tuple[int, str]]]) -> Iterator[str]:
    """Address of a real TensorBoard server on the run."""
    run, _ = attempts
    port = free_port()
    command = [str(Path(sys.executable).parent / "tensorboard"), "--logdir", str(run / "tensorboard")]
    log = (run.parent / "tensorboard.log").open("w")
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 90
        while not _has_read_all(f"http://127.0.0.1:{port}"):
            assert server.poll() is None, (run.parent / "tensorboard.log").read_text()
            assert time.monotonic() < end, (run.parent / "tensorboard.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _has_read_all(address: str) -> bool:
    """It shows what it has read so far; the last that a run writes is how long its last checkpoint took."""
    tags = get(address, "data/plugin/scalars/tags") or {}
    if "checkpoint/save_seconds" not in tags.get(".", {}):
        return False
    saved = get(address, "data/plugin/scalars/scalars", run=".", tag="checkpoint/save_seconds")
    return bool(saved) and saved[-1][1] == STEPS


def get(address: str, path: str, **query: Any) -> Any:
    """A JSON answer, or None while there is no server."""
    try:
        with urllib.request.urlopen(f"{address}/{path}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
            return json.loads(answer.read())
    except (ConnectionError, urllib.error.URLError):
        return None


def test_tensorboard_shows_scalars_pictures_and_text(attempts: tuple[Path, list[tuple[int, str]]], board: str) -> None:
    run, _ = attempts
    tags = get(board, "data/plugin/scalars/tags")["."]
    for tag in (
        *("loss/total_loss", "gan/disc_loss", "gan/lecam_loss", "gan/lecam_real", "gan/adaptive_weight"),
        *("gan/adversarial_weight", "schedule/gan_weight", "schedule/gan_learns", "schedule/lr_generator"),
        *("gradient/grad_norm_generator", "gradient/skipped", "speed/clips_per_s", "speed/data_wait"),
        *("validation/val_psnr", "validation/val_ssim", "checkpoint/save_seconds"),
    ):
        assert tag in tags, sorted(tags)
    shown = get(board, "data/plugin/scalars/scalars", run=".", tag="loss/total_loss")
    # What the first start logged of steps that the second one did again is not shown twice.
    assert [(step, pytest.approx(value)) for _, step, value in shown] == [
        (row["step"], row["total_loss"]) for row in rows(run)
    ]
    for tag in ("samples_batch/0", "samples_val/0"):
        pictures = get(board, "data/plugin/images/images", run=".", tag=tag, sample=0)
        assert [picture["step"] for picture in pictures] == [STEPS]
    with urllib.request.urlopen(f"{board}/data/plugin/images/individualImage?{pictures[0]['query']}") as answer:
        assert answer.read().startswith(b"GIF89a")
    text = get(board, "data/plugin/text/text", run=".", tag="config/text_summary")
    assert "validation" in text[-1]["text"]
    (rollback,) = get(board, "data/plugin/text/text", run=".", tag="rollback/text_summary")
    assert "back to step 12" in rollback["text"]

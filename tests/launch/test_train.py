"""launch/train.py as users start it: two CPU ranks under `deepspeed`, stopped by signals, started again, refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import evaluate
from model.vidtwin import VidTwin
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.data_pipeline.read.loading import break_samples, zero_video
from tests.launch.two_ranks import ROOT, ended, environment, members, rows_of, start_two_ranks, wait_until
from tests.tools import warm
from tests.trainer.cases import MODEL, tiny_config
from trainer.checkpoint.export import export
from trainer.config.loader import load_config, to_yaml
from trainer.config.train import TrainConfig
from trainer.estimate.check import checkpoint_bytes
from trainer.estimate.trace import trace
from trainer.evaluation.report import evaluate as measure
from trainer.evaluation.run import load_model
from trainer.evaluation.shard_source import ShardSource

STEPS = 40
SAME = ("step", "total_loss", "nll_loss", "kl_loss", "disc_loss", "adversarial_weight", "grad_norm_generator")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file of a tiny run: discriminator from step 10 of 40, batch statistics, posterior noise."""
    folder = tmp_path_factory.mktemp("train")
    data = write_dataset(folder / "data", split_into_shards(make_clips(20, frames=(9, 12)), [8]))
    words = ["gan.start=10", "zero.stage=2", "data.workers=1", "checkpoint.every=25", "telemetry.log_every=1"]
    config = tiny_config("unused", f"data.shards={data}", f"steps={STEPS}", *words, "telemetry.samples_every=20")
    config.output = "???"
    file = folder / "settings.yaml"
    file.write_text(to_yaml(config))
    return file


def under_deepspeed(settings: Path, output: Path, *words: str) -> subprocess.Popen[str]:
    return start_two_ranks("launch/train.py", settings, output, *words)


def rows(output: Path) -> list[dict[str, Any]]:
    return rows_of(output, SAME)


@pytest.fixture(scope="module")
def undisturbed(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    process = under_deepspeed(settings, output)
    text = ended(process)
    assert process.returncode == 0, text[-3000:]
    assert f"finished {STEPS} steps; the model is in {output}/model" in text
    assert text.count(f"(all of it will be in {output}/config.yaml)") == 1  # from one rank, once
    assert f"steps={STEPS}  " in text
    assert "activation_checkpointing" not in text  # as it is by default
    return output


def test_run_directory_and_exported_model(undisturbed: Path) -> None:
    assert [row["step"] for row in rows(undisturbed)] == list(range(1, STEPS + 1))
    assert rows(undisturbed)[-1]["total_loss"] < 0.8 * rows(undisturbed)[0]["total_loss"]
    assert [row["disc_loss"] is None for row in rows(undisturbed)] == [True] * 10 + [False] * (STEPS - 10)
    saved = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert saved == ["step-00000025", "step-00000040"]
    assert list((undisturbed / "tensorboard").glob("events.out.tfevents.*"))
    assert not (undisturbed.parent / "extensions").exists()
    model = VidTwin.from_pretrained(undisturbed / "model")
    assert model.config.width == MODEL["width"]
    assert torch.isfinite(model.encode(torch.zeros(1, 3, 8, 16, 16)).structure).all()


def test_the_curve_over_its_checkpoints_is_that_of_their_exports(undisturbed: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_dataset(data, split_into_shards(make_clips(4, frames=(9, 12), split="val"), [4]))
    words = ["--checkpoints", str(undisturbed), "--shards", str(data)]
    assert evaluate.main([*words, "--output", str(tmp_path / "curve")]) == 0
    curve = json.loads((tmp_path / "curve" / "report.json").read_text())["models"]
    assert [entry["provenance"]["step"] for entry in curve] == [25, 40]
    page = (tmp_path / "curve" / "report.html").read_text()
    for entry in curve:
        model = export(str(undisturbed), tmp_path / entry["model"][-8:], entry["provenance"]["step"])
        source = ShardSource(str(data), "val", 8, 16)
        report = measure(load_model(tmp_path / entry["model"][-8:], torch.device("cpu")), source)
        assert model.step == entry["provenance"]["step"]
        (result,) = entry["results"]
        for name in ("psnr", "ssim"):
            assert result["metrics"][name]["value"] == report["metrics"][name]["value"]
        assert f"{report['metrics']['psnr']['value']:.2f}" in page
    assert page.count("<svg") == len(result["metrics"])  # a chart of each metric


STOPS = {"deepspeed": signal.SIGTERM, "terminal": signal.SIGINT, "a rank": signal.SIGUSR1}
"""Whom a signal is sent to -> the signal that people send there."""


@pytest.mark.slow
@pytest.mark.parametrize("ways", [["deepspeed"], list(STOPS)])
def test_stopped_and_started_again_equals_undisturbed(
    settings: Path, undisturbed: Path, tmp_path: Path, ways: list[str]
) -> None:
    """SIGTERM to the `deepspeed` command, Ctrl-C in the terminal, SIGUSR1 to one rank: saved, no orphans, goes on."""
    output = tmp_path / "run"
    stopped = 0
    for whom in ways:
        number = STOPS[whom]
        process = under_deepspeed(settings, output)
        try:
            wait_until(lambda done=stopped, p=process: len(rows(output)) >= done + 3 or p.poll() is not None)
            if whom == "terminal":
                os.killpg(process.pid, number)
            else:
                os.kill(process.pid if whom == "deepspeed" else _rank(process.pid, 1), number)
            if whom == "deepspeed":  # it waits for nobody, and says 143 in a shell
                assert process.wait(60) == -signal.SIGTERM
            text, _ = process.communicate(timeout=120)
            wait_until(lambda p=process: not members(p.pid), 60)
        finally:
            for orphan in members(process.pid):
                os.kill(orphan, signal.SIGKILL)
        if stopped:
            assert f"going on after step {stopped}" in text, whom
        assert stopped + 3 <= len(rows(output)) < STEPS, f"{whom}: {text[-3000:]}"
        stopped = len(rows(output))
        assert f"after step {stopped}, which is saved; the same command goes on from there" in text, whom
        assert (output / "checkpoints" / f"step-{stopped:08d}" / "COMPLETE").is_file(), whom
        if whom == "terminal":  # DeepSpeed's launcher tells the ranks as well, and then does not wait for their status
            assert process.returncode not in (0, 2)
        else:
            assert text.count("exits successfully") == 2, whom  # each rank with status 0
            assert process.returncode == (0 if whom == "a rank" else -signal.SIGTERM)
    process = under_deepspeed(settings, output)
    text = ended(process)
    assert process.returncode == 0, text[-3000:]
    assert rows(output) == rows(undisturbed)


def _rank(session: int, rank: int) -> int:
    found = {}
    for process in members(session):
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            parent = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1]
        except OSError:  # it has just ended
            continue
        if b"launch/train.py" in words and f"--local_rank={rank}".encode() in words and b"-m" not in words:
            found[process] = int(parent)
    (first,) = [process for process, parent in found.items() if parent not in found]  # the others are its data workers
    return first


def test_the_size_of_a_checkpoint_is_estimated_before_the_run(undisturbed: Path) -> None:
    """To a tenth, because beside tensors a file holds names and shapes, which count in a model as small as this one."""
    config = load_config(TrainConfig, [undisturbed / "config.yaml"], [])
    files = [file for file in (undisturbed / "checkpoints" / "step-00000040").rglob("*") if file.is_file()]
    written = sum(file.stat().st_size for file in files)
    assert 0.9 * written < checkpoint_bytes(config, trace(config, 2), 2) < written


@pytest.mark.slow
@pytest.mark.parametrize("row", [2, 11])
def test_a_rank_with_too_many_unreadable_samples_ends_the_command_with_2(
    settings: Path, tmp_path: Path, row: int
) -> None:
    """The other rank fails as well, by the broken connection, and that must not be the status."""
    data = write_dataset(tmp_path / "data", split_into_shards(make_clips(20, frames=(9, 12)), [8]))
    (key,) = break_samples(data, [row], zero_video)
    process = under_deepspeed(settings, tmp_path / "run", f"data.shards={data}", "data.max_bad_samples=0")
    text = ended(process)
    assert process.returncode == 2, text[-3000:]
    assert text.count(f"training gave up: data.max_bad_samples=0: 1 samples of {data} cannot be read:\n") == 1
    assert key in text.split("training gave up: ")[1].splitlines()[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["precision=fp16"], "precision=fp16 needs a GPU"),
        (
            ["data.lanes=4000", "data.global_batch=4000"],
            "data.lanes=4000 is more than the 20 samples there are to read",
        ),
        (["init_from=nowhere"], "init_from=nowhere: nowhere/model.safetensors not found"),
    ],
)
def test_refused_in_one_line(settings: Path, tmp_path: Path, words: list[str], message: str) -> None:
    command = ["launch/train.py", "--config", str(settings), f"output={tmp_path / 'run'}", *words]
    done = warm.run(command, environment=environment(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    if "data.lanes" not in message:  # only the ranks together open the dataset
        assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)


def test_a_gpu_that_is_not_there_is_refused_in_one_line(settings: Path, tmp_path: Path) -> None:
    command = [sys.executable, "launch/train.py", "--config", str(settings), f"output={tmp_path / 'run'}"]
    variables = environment(tmp_path) | {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "launch/train.py: DS_ACCELERATOR=cuda needs a GPU, and torch can use none here: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_fails_a_data_worker_ends_the_command_with_1_in_one_line(settings: Path, tmp_path: Path) -> None:
    """Reading a shard fails with EIO, the kernel's answer for an address where a process has no memory."""
    data = write_dataset(tmp_path / "data", split_into_shards(make_clips(20, frames=(9, 12)), [8]))
    for shard in (data / "shards").iterdir():
        shard.unlink()
        shard.symlink_to("/proc/self/mem")
    without_pauses = (
        "import runpy; from data_pipeline.store import base; base.pause = lambda failures: None; "
        "runpy.run_path('launch/train.py', run_name='__main__')"
    )
    words = ["--config", str(settings), f"output={tmp_path / 'run'}", f"data.shards={data}", "data.max_bad_samples=0"]
    done = warm.run(["-c", without_pauses, *words], environment=environment(tmp_path))
    assert done.returncode == 1, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("launch/train.py: ")]
    assert f"training ended after step 0: {data}/shards/" in line
    assert "failed 8 times, last: [Errno 5] Input/output error" in line
    assert "Traceback" not in done.stderr


def test_help_lists_the_keys_with_their_meaning() -> None:
    done = warm.run(["launch/train.py", "--help"])
    assert done.returncode == 0
    assert "gan.start=10000" in done.stdout
    assert "first step at which the discriminator learns" in done.stdout

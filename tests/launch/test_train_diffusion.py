"""launch/train_diffusion.py as users start it: trained, stopped, started again, refused, on a dataset of latents."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import evaluate, export, train_diffusion
from model.dit import DiT
from model.dit_config import LatentSpace
from tests.data_pipeline.latents_dataset import MadeUpClip, make_clips, settings_of, write_latents
from tests.launch.two_ranks import ended, environment, members, rows_of, start_two_ranks, wait_until
from tests.tools import warm
from tests.trainer.diffusion.cases import tiny_config
from trainer.config.loader import to_yaml
from trainer.estimate.memory import estimate
from trainer.estimate.trace_dit import trace_dit

SCRIPT = "launch/train_diffusion.py"
STEPS = 30
SAME = ("step", "total_loss", "loss_structure", "loss_dynamics", "grad_norm_dit", "lr_dit")
HELD_OUT = [replace(clip, label="ba"[number % 2]) for number, clip in enumerate(make_clips(3, split="val"))]
NEW_CLASS = [MadeUpClip(f"more-{number:05d}", label="c") for number in range(4)]
WORDS = [
    *(f"steps={STEPS}", "dit.condition=class", "data.workers=1", "checkpoint.every=20", "telemetry.log_every=1"),
    *("validation.every=15", "validation.clips=5", "validation.times=2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the dataset `latents`, and the file `settings.yaml` of a run on it."""
    folder = tmp_path_factory.mktemp("diffusion")
    write(folder / "latents", make_clips(12), HELD_OUT)
    config = tiny_config("unused", *WORDS, f"data.shards={folder / 'latents'}")
    config.output = "???"
    (folder / "settings.yaml").write_text(to_yaml(config))
    return folder


def write(place: Path, *shards: Sequence[MadeUpClip], weights: str = "0" * 64, frames: int = 8) -> Path:
    """A dataset of latents, of another model or of windows of other lengths where that is wanted."""
    settings = settings_of()
    shapes = settings.shapes | {name: (2, frames, 2) for name in ("dynamics_w", "dynamics_h")}
    write_latents(place, shards, replace(settings, weights=weights, shapes=shapes))
    return place


def run(folder: Path, output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A training of one process to its end."""
    command = [SCRIPT, "--config", str(folder / "settings.yaml"), f"output={output}", *words]
    return warm.run(command, environment=environment(output.parent))


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The output of a finished run of one process."""
    done = run(folder, folder / "trained")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "latents, split train: 24 samples in 1 shard; left out: 6 samples of other splits" in done.stdout
    assert "latents, split val: 5 of 6 samples are measured" in done.stdout
    return folder / "trained"


def test_a_run_leaves_rows_checkpoints_and_a_dit_that_knows_its_latents(trained: Path) -> None:
    assert [row["step"] for row in rows_of(trained, SAME)] == list(range(1, STEPS + 1))
    saved = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert saved == ["step-00000020", "step-00000030"]
    assert list((trained / "tensorboard").glob("events.out.tfevents.*"))
    for name in ("model", "model_ema"):
        dit = DiT.from_pretrained(trained / name)
        assert dit.space.classes == ("a", "b")
        assert (dit.space.structure_shape, dit.space.dynamics_shape) == ((3, 4, 2, 2), (2, 8, 4))
        assert dit.space.autoencoder == "0" * 64
    described = json.loads((trained.parent / "latents" / "dataset.json").read_text())["latents"]["statistics"]
    mean = dit.normaliser.get_buffer("dynamics_h_mean").tolist()
    assert mean == pytest.approx(described["dynamics_h"]["mean"], rel=1e-6)


def test_going_back_to_a_checkpoint_gives_the_same_rows(folder: Path, trained: Path, tmp_path: Path) -> None:
    before = rows_of(trained, SAME)
    output = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(output / "model")
    done = run(folder, output, "checkpoint.resume=20")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on after step 20" in done.stdout
    assert rows_of(output, SAME)[-10:] == before[20:]


def test_a_check_says_what_a_training_will_take_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    done = run(folder, tmp_path / "run", "--check", "steps=7200")
    assert (done.returncode, done.stderr) == (0, "")
    assert "latents, split train: 24 samples in 1 shard; left out: 6 samples of other splits" in done.stdout
    assert f"start         a new run of 7200 steps in {tmp_path / 'run'}" in done.stdout
    space = LatentSpace(structure_shape=(3, 4, 2, 2), dynamics_shape=(2, 8, 4), classes=("a", "b"))
    config = tiny_config("unused", *WORDS)
    found = estimate(config, 1, modes=False, tracer=partial(trace_dit, space=space))
    assert f"{found.stages[1].total / 1e6:.3g} MB a rank at ZeRO 1, fp32, 1 x 1 x 4 clips" in done.stdout
    assert "speed         not known: the arithmetic of a step takes" in done.stdout
    assert "time          not known either" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_check_goes_on_from_a_run_and_refuses_what_its_start_would(
    folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_diffusion, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=None, SIG_DFL=None))
    monkeypatch.setattr("trainer.estimate.speed.SHORTEST_STEP", 0.0)  # as if this small step were all arithmetic

    def check(output: Path, *words: str) -> tuple[int, str]:
        settings = ["--config", str(folder / "settings.yaml"), f"output={output}", "--check"]
        status = train_diffusion.main([*settings, *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    status, said = check(trained, "steps=40")
    assert (status, "goes on after step 30 of 40" in said, "hours for 10 steps" in said) == (0, True, True)
    other = write(trained.parent / "elsewhere", make_clips(12), HELD_OUT, weights="1" * 64)
    for words, message in (
        (("steps=40", "dit.depth=3"), "(dit.depth: 2 -> 3)"),
        (("checkpoint.resume=7",), "holds no checkpoint of step 7"),
    ):
        status, said = check(trained, *words)
        assert (status, len(said.splitlines())) == (2, 1), said
        assert message in said
    status, said = check(trained.parent / "new", f"init_from={trained / 'model'}", f"data.shards={other}")
    assert (status, "is for latents of the model whose weights have the digest" in said) == (2, True)


@pytest.mark.parametrize(("words", "live"), [([], "model_ema"), (["--weights", "raw"], "model")])
def test_an_export_of_the_last_checkpoint_is_what_the_run_wrote(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], live: str
) -> None:
    assert export.main(["--checkpoint", str(trained), "--output", str(tmp_path / "dit"), *words]) == 0
    assert f"weights of step {STEPS}, from {trained / 'checkpoints' / 'step-00000030'}" in capsys.readouterr().out
    files = {file.name: file.read_bytes() for file in (trained / live).iterdir()}
    assert files.keys() == {"README.md", "config.json", "model.safetensors", "provenance.json"}
    assert {file.name: file.read_bytes() for file in (tmp_path / "dit").iterdir()} == files
    assert export.main(["--model", str(tmp_path / "dit"), "--output", str(tmp_path / "again")]) == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()} == files
    assert "It is told one of 2 classes: a, b." in files["README.md"].decode()
    assert f"| training step | {STEPS} |" in files["README.md"].decode()


def test_what_a_dit_cannot_be_is_refused_by_name(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dit, output = str(trained / "model"), ["--output", str(tmp_path / "out")]
    for place in (["--checkpoint", str(trained)], ["--model", dit]):
        assert export.main([*place, "--format", "diffusers", *output]) == 2
        message = (
            f"--format diffusers is a form of a VidTwin, and {place[1]} holds a DiT; a DiT has only --format model"
        )
        assert capsys.readouterr().err == f"launch/export.py: {message}\n"
    assert evaluate.main(["--checkpoints", str(trained), "--shards", str(trained.parent / "latents")]) == 2
    assert "is a checkpoint of a DiT, and a VidTwin is wanted; name a run of launch/train.py" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_ranks_stopped_and_started_again_give_the_rows_of_an_undisturbed_run(folder: Path, tmp_path: Path) -> None:
    settings = folder / "settings.yaml"
    whole = start_two_ranks(SCRIPT, settings, tmp_path / "whole")
    text = ended(whole)
    assert whole.returncode == 0, text[-3000:]
    assert not (tmp_path / "extensions").exists()
    output = tmp_path / "run"
    process = start_two_ranks(SCRIPT, settings, output)
    try:
        wait_until(lambda: len(rows_of(output, SAME)) >= 3 or process.poll() is not None)
        os.kill(process.pid, signal.SIGTERM)
        text, _ = process.communicate(timeout=120)
        wait_until(lambda: not members(process.pid), 60)
    finally:
        for orphan in members(process.pid):
            os.kill(orphan, signal.SIGKILL)
    stopped = len(rows_of(output, SAME))
    assert 3 <= stopped < STEPS, text[-3000:]
    assert f"after step {stopped}, which is saved; the same command goes on from there" in text
    again = start_two_ranks(SCRIPT, settings, output)
    text = ended(again)
    assert again.returncode == 0, text[-3000:]
    assert f"going on after step {stopped}" in text
    assert rows_of(output, SAME) == rows_of(tmp_path / "whole", SAME)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.shards={folder}/none"], "data.shards={folder}/none: no dataset.json there"),
        (["data.normalize=true"], "data.normalize=true would normalise the latents twice"),
        (["data.split=val"], "data.split=val is the split that validation.every=15 measures on"),
        (["data.sample=true"], "data.sample=true needs the log-variances"),
        (["dit.condition=text"], "dit.condition=text needs token embeddings of captions"),
        (["init_from={folder}/none"], "init_from={folder}/none: {folder}/none/config.json not found"),
        (["output={folder}/latents"], "output={folder}/latents is the same folder as data.shards {folder}/latents"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_in_one_line(
    folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    done = run(folder, tmp_path / "run", *(word.format(folder=folder) for word in words))
    assert message.format(folder=folder) in refusal(done)
    assert not (tmp_path / "run" / "checkpoints").exists()


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{SCRIPT}: ")]
    return line


UNLABELLED = MadeUpClip("unnamed-00000-0000")
DATASETS: dict[str, tuple[list[list[MadeUpClip]], str]] = {
    "no held-out clips": ([make_clips(6)], "wants latents of the split 'val': data.shards={place}: none of its 12"),
    "no statistics": ([HELD_OUT], "data.shards={place}: none of its 6 samples can be read: no sample has data.split="),
    "a held-out class without samples": (
        [make_clips(6), [MadeUpClip("rare-00000-0000", label="rare", split="val")]],
        "the class 'rare' of the held-out sample rare-00000-0000-",
    ),
    "a sample without a label": ([[*make_clips(6), UNLABELLED], HELD_OUT], "of the split 'train' has no label"),
    "no labels": (
        [[replace(clip, label="") for clip in make_clips(6)], HELD_OUT],
        "dit.condition=class needs labels, and the latents have none",
    ),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_that_lacks_something_is_refused_by_name(folder: Path, tmp_path: Path, name: str) -> None:
    shards, message = DATASETS[name]
    place = write(tmp_path / "other", *shards)
    assert message.format(place=place) in refusal(run(folder, tmp_path / "run", f"data.shards={place}"))


def test_latents_without_a_training_split_have_no_statistics(folder: Path, tmp_path: Path) -> None:
    place = write(tmp_path / "other", HELD_OUT)
    words = [f"data.shards={place}", "data.split=val", "validation.every=0"]
    assert f"data.shards={place} has no statistics, by which" in refusal(run(folder, tmp_path / "run", *words))


CHANGED: dict[str, tuple[dict[str, object], list[list[MadeUpClip]], str]] = {
    "another autoencoder": (
        {"weights": "1" * 64},
        [make_clips(12), HELD_OUT],
        f"was encoded by the model whose weights have the digest {'1' * 64}",
    ),
    "another window": ({"frames": 4}, [make_clips(12), HELD_OUT], "has latents of dynamics_shape=[2, 4, 4]"),
    "a class more": ({}, [make_clips(12), HELD_OUT, NEW_CLASS], "other classes than the checkpoint's run had (new: c)"),
    "a class less": (
        {},
        [[replace(clip, label="a") for clip in make_clips(12)], [replace(clip, label="a") for clip in HELD_OUT]],
        "other classes than the checkpoint's run had (without samples: b)",
    ),
}


@pytest.mark.parametrize("way", ["goes on", "is forked"])
@pytest.mark.parametrize("name", CHANGED)
def test_a_run_does_not_take_other_latents(folder: Path, trained: Path, tmp_path: Path, name: str, way: str) -> None:
    changes, shards, message = CHANGED[name]
    place = write(tmp_path / "other", *shards, **changes)  # type: ignore[arg-type]
    words = [f"data.shards={place}", f"steps={STEPS + 1}"]
    output = tmp_path / "run"
    if way == "goes on":
        shutil.copytree(trained, output)
    else:
        words.append(f"fork_from={trained}")
    assert message in refusal(run(folder, output, *words))


def test_a_run_takes_more_clips_of_its_classes(folder: Path, trained: Path, tmp_path: Path) -> None:
    more = [replace(clip, label="b") for clip in NEW_CLASS]
    place = write(tmp_path / "grown", make_clips(12), HELD_OUT, more)
    output = Path(shutil.copytree(trained, tmp_path / "run"))
    done = run(folder, output, f"data.shards={place}", f"steps={STEPS + 10}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "split train has 28 samples now" in done.stdout
    before = DiT.from_pretrained(trained / "model").normaliser.state_dict()
    for name, value in DiT.from_pretrained(output / "model").normaliser.state_dict().items():
        assert value.equal(before[name]), "the network keeps the statistics that it was trained with"

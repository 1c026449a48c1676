"""`launch/train.py --check`: what it shows and refuses, and that it leaves every place as it was."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data_pipeline.read.loader import ClipLoader
from launch import train
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.cases import tiny_config
from trainer.checkpoint.files import flush_and_digest, marker_text
from trainer.config.loader import to_yaml
from trainer.config.train import TrainConfig
from trainer.estimate import check
from trainer.estimate.memory import estimate
from trainer.estimate.speed import Speed, hours
from trainer.estimate.trace import Trace, trace

CLIPS = 11
TRACES: dict[tuple[str, int], Trace] = {}
"""The traced steps of this file: of equal settings a trace is the same, and takes a second."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `data`, of eleven clips, and `settings.yaml`, a training on them whose output is `run`."""
    monkeypatch.setattr(train, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=None, SIG_DFL=None))
    data = write_dataset(tmp_path / "data", split_into_shards(make_clips(CLIPS, frames=(9, 12)), [4]))
    (tmp_path / "settings.yaml").write_text(to_yaml(tiny_config(str(tmp_path / "run"), f"data.shards={data}")))

    def traced(config: TrainConfig, micro_batch: int) -> Trace:
        key = to_yaml(config).replace(str(tmp_path), ""), micro_batch
        if key not in TRACES:
            TRACES[key] = trace(config, micro_batch)
        return TRACES[key]

    monkeypatch.setattr("trainer.estimate.trace.trace", traced)
    return tmp_path


def checks(place: Path, *words: str) -> int:
    return train.main(["--config", str(place / "settings.yaml"), "--check", *words])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and folder below a folder; a folder has no content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")
    }


def test_a_training_that_can_start_is_described_and_nothing_is_written(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The temporary folder is watched too, apart from torch's, which makes one for its compiler when it is imported."""
    (place / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(place / "temporary"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("trainer.estimate.speed.SHORTEST_STEP", 0.0)  # as if this small step were all arithmetic
    before = tree(place)
    assert checks(place, "steps=7200") == 0
    assert tree(place) == before
    shown = capsys.readouterr()
    assert shown.err == ""
    assert f"{place}/data, split train: {CLIPS} samples in 3 shards" in shown.out
    assert f"start         a new run of 7200 steps in {place}/run" in shown.out
    config = tiny_config(str(place / "run"))
    assert f"{estimate(config, 1, modes=False).stages[1].total / 1e6:.3g} MB a rank at ZeRO 1" in shown.out
    assert shown.out.endswith("nothing was started or written\n")
    (step, hours) = (float(re.search(pattern, shown.out)[1]) for pattern in (r"(\S+) s a step", r"(\S+) hours for"))  # type: ignore[index]
    assert hours == pytest.approx(2 * step, rel=0.01)  # 7200 steps of one second are two hours


def test_of_a_step_without_much_arithmetic_no_speed_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checks(place, "steps=7200") == 0
    shown = capsys.readouterr().out
    assert "speed         not known: the arithmetic of a step takes" in shown
    assert "time          not known either" in shown
    assert not re.search(r"\de-\d|\b0\.0\d* |hours", shown), "no figure is so small that it says nothing"


def test_under_a_launcher_the_first_rank_speaks_for_all(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert checks(place) == 0
        assert ("fp32, 2 x 1 x 2 clips" in capsys.readouterr().out) == (rank == "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert checks(place) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert "data.global_batch=4 cannot be divided among 3 ranks" in shown.err


def test_shards_that_are_gone_or_cut_off_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = sorted((place / "data" / "shards").iterdir())
    assert len(shards) == 3
    size = shards[1].stat().st_size
    with shards[1].open("r+b") as shard:
        shard.truncate(size - 512)
    assert checks(place) == 2
    message = (
        f"1 of 3 shards are not as dataset.json lists them: shards/{shards[1].name} has {size - 512} bytes and not"
    )
    assert f"{message} {size}; " in capsys.readouterr().err
    for shard_file in shards:
        shard_file.unlink()
    assert checks(place) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert f"3 of 3 shards are not as dataset.json lists them: shards/{shards[0].name} is missing" in shown.err


def checkpointed(place: Path) -> Path:
    """The directory of a complete checkpoint of step 4 in the run's output, without the state of the networks."""
    config = tiny_config(str(place / "run"), f"data.shards={place / 'data'}")
    directory = place / "run" / "checkpoints" / "step-00000004"
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(config))
    loader = ClipLoader(config.data)
    state = {"step": 4, "epoch": 0, "consumed": 0, "order": dict(loader.identity)}
    loader.close()
    (directory / "state.json").write_text(json.dumps(state))
    mark(directory)
    return directory


def mark(directory: Path) -> None:
    """Write the marker of a checkpoint over what lies in it."""
    files = {name: flush_and_digest(directory / name) for name in ("config.yaml", "state.json")}
    (directory / "COMPLETE").write_text(marker_text(4, files))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["precision=fp16"], "precision=fp16 needs a GPU"),
        (["data.lanes=400", "data.global_batch=400"], f"data.lanes=400 is more than the {CLIPS} samples"),
        (["validation.every=5"], "validation.every=5 wants clips of the split 'val'"),
        (["checkpoint.keep=1000000000"], "has no room for the checkpoints"),
    ],
)
def test_what_a_training_would_meet_is_refused_in_one_line(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(place)
    assert checks(place, *words) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert message in shown.err
    assert tree(place) == before


def test_a_checkpoint_of_another_run_or_dataset_is_refused_and_the_steps_left_are_counted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.estimate.speed.SHORTEST_STEP", 0.0)  # as if this small step were all arithmetic
    directory = checkpointed(place)
    assert checks(place) == 0
    shown = capsys.readouterr().out
    assert f"goes on after step 4 of 6, from {place}/run/checkpoints/step-00000004" in shown
    assert "hours for 2 steps" in shown
    assert checks(place, "seed=3") == 2
    assert "(seed: 0 -> 3)" in capsys.readouterr().err
    state = json.loads((directory / "state.json").read_text())
    for snapshot in state["order"]["snapshots"]:
        snapshot["content"] = "another"
    (directory / "state.json").write_text(json.dumps(state))
    mark(directory)
    assert checks(place) == 2
    assert "the saved position belongs to other data" in capsys.readouterr().err


def test_what_a_start_refuses_of_forks_and_steps_back_a_check_refuses_too(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = checkpointed(place)
    new = f"output={place / 'new'}"
    for words, message in (
        (("checkpoint.resume=never",), "holds step-00000004 and checkpoint.resume=never"),
        (("checkpoint.resume=3",), "holds no checkpoint of step 3"),
        (("fork_from=elsewhere",), "holds a run that is no fork"),
        ((new, "fork_from=elsewhere"), "fork_from=elsewhere: elsewhere holds no complete checkpoint"),
        ((new, f"fork_from={place / 'run'}@3"), "holds no checkpoint of step 3; there are 4"),
        ((new, f"fork_from={place / 'run'}", "model.depth=3"), "a fork has the networks of its parent (model.depth:"),
    ):
        assert checks(place, *words) == 2, words
        assert message in capsys.readouterr().err
    assert checks(place, new, f"fork_from={place / 'run'}@4") == 0
    assert f"a new run in {place / 'new'}, a fork of {place / 'run'}@4" in capsys.readouterr().out
    (directory / "config.yaml").write_text((directory / "config.yaml").read_text() + "# changed\n")
    assert checks(place, "checkpoint.resume=4") == 2
    assert "config.yaml has" in capsys.readouterr().err


def test_a_gpu_that_is_too_small_is_refused_with_a_remedy(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The GPU is a description of one; no GPU computes in a check."""
    gpu = SimpleNamespace(name="NVIDIA L4", total_memory=1_000_000)
    monkeypatch.setattr(check, "own_device", lambda wanted: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    assert checks(place) == 2
    assert re.search(r"a rank needs \S+ MB and NVIDIA L4 has 0\.001 GB; change: ", capsys.readouterr().err)
    gpu.total_memory = 24_000_000_000
    assert checks(place) == 0
    shown = capsys.readouterr().out
    assert "of 24 GB (NVIDIA L4)" in shown
    assert "; l4, from a data sheet: 0.34 (an assumption" in shown
    gpu.name = "NVIDIA T4"
    assert checks(place) == 0
    assert "no data sheet of NVIDIA T4 is known" in capsys.readouterr().out


def test_hours_are_steps_times_seconds() -> None:
    assert hours(Speed(step=0.5, before=None, communication=0.0, clips=6), 500_000) == pytest.approx(69.444444)

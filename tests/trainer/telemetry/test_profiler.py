"""Which steps end up in a trace; tests/launch/test_watching.py has the traces of two ranks."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipeline.read.loader import Batch
from tests.trainer.toy import Toy, toy
from trainer.config.running import ProfileConfig
from trainer.config.train import TrainConfig
from trainer.run import run
from trainer.telemetry.profiler import ProfileWindow


def trace(folder: Path, config: ProfileConfig, first: int, last: int) -> list[int]:
    """Sizes of the matrix products in the trace: step n multiplies n x n matrices."""
    with ProfileWindow(config, folder / "profile", rank=3) as window:
        for step in range(first, last + 1):
            window.before(step)
            torch.mm(torch.ones(step, step), torch.ones(step, step))
    files = sorted(folder.rglob("*"))[1:]
    if not files:
        return []
    (file,) = files
    assert file.name.startswith("rank-00003.")
    return sizes(file)


def sizes(file: Path) -> list[int]:
    """Of the matrix products in a trace."""
    events = json.loads(file.read_text())["traceEvents"]
    return [event["args"]["Input Dims"][0][0] for event in events if event["name"] == "aten::mm"]


@pytest.mark.parametrize(
    ("at", "first", "last", "traced"),
    [
        (5, 1, 9, [5, 6]),
        (2, 1, 9, [2, 3]),
        (1, 1, 9, [1, 2]),
        (5, 4, 9, [5, 6]),  # going on just before the window
        (5, 5, 9, [5, 6]),  # with it
        (5, 6, 9, []),  # and in it
        (5, 1, 5, [5]),  # the run ends in it
        (0, 1, 9, []),
    ],
)
def test_the_steps_of_the_window_are_traced(tmp_path: Path, at: int, first: int, last: int, traced: list[int]) -> None:
    assert trace(tmp_path, ProfileConfig(at=at, steps=2), first, last) == traced


def test_a_run_traces_the_steps_as_the_console_counts_them(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Toy.step

    def step(method: Toy, batch: Batch, number: int, observed: bool) -> dict[str, Tensor]:
        torch.mm(torch.ones(number + 1, number + 1), torch.ones(number + 1, number + 1))
        return usual(method, batch, number, observed)

    monkeypatch.setattr(Toy, "step", step)
    config.profile = ProfileConfig(at=5, steps=2)
    run(config, toy())
    (file,) = (Path(config.output) / "profile").iterdir()
    assert sizes(file) == [5, 6]

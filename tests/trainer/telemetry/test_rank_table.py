"""Each rank's own time by a closed form, on ranks whose times the test makes up; who is named, when, and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.cases import tiny_config
from trainer.distributed import Ranks
from trainer.method import Facts
from trainer.telemetry import rank_table
from trainer.telemetry.journal import read_rows
from trainer.telemetry.rank_table import RankTable, RankTime, slow_ranks
from trainer.telemetry.recorder import Telemetry

FAST = RankTime(0.2, 0.0)


class Four(Ranks):
    """Four ranks on two hosts, seen from the first; where numbers are gathered, rank 2's are thrice as large."""

    def gather(self, value: Any) -> list[Any]:
        if isinstance(value, str):
            return ["node-a", "node-a", "node-b", "node-b"]
        if isinstance(value, tuple):
            return [value, value, tuple(3 * part for part in value), value]
        return [value] * 4


@pytest.fixture
def four(alone: Ranks) -> Ranks:
    return Four(**vars(alone) | {"world_size": 4})


def test_slow_is_what_exceeds_the_median_by_the_share() -> None:
    """Own times 0.2, 0.3, 0.25, 0.26: the median is 0.255, and 0.255 x 1.17 = 0.298."""
    times = [RankTime(0.2, 0.0), RankTime(0.1, 0.2), RankTime(0.25, 0.0), RankTime(0.2, 0.06)]
    assert slow_ranks(times, 0.17) == {1}
    assert slow_ranks(times, 0.18) == set()
    assert slow_ranks([FAST], 0.0) == set()


def test_a_rank_is_named_when_it_is_slow_twice_in_a_row_and_again_when_it_is_not(four: Ranks, tmp_path: Path) -> None:
    said: list[str] = []
    table = RankTable(tmp_path / "ranks.jsonl", four, 0.25, said.append)
    table.begin(0)
    waits = [FAST, FAST, RankTime(0.2, 0.2), FAST]
    for step, times in enumerate([waits, [FAST] * 4, waits], start=1):
        table.write(step, times)
        assert said == []  # never twice in a row
    table.write(4, waits)
    (text,) = said
    assert text.splitlines() == [
        "slow after step 4: rank 2 on node-b takes 0.4 s of its own in a step, the median of 4 ranks is 0.2 s",
        "  rank  host    forward s  wait for data s",
        "     2  node-b        0.2              0.2",
        "     0  node-a        0.2                0",
        "     1  node-a        0.2                0",
        "     3  node-b        0.2                0",
    ]
    table.write(5, waits)
    assert len(said) == 1, "it is known by now"
    table.write(6, [FAST] * 4)
    assert said[1:] == ["rank 2 on node-b is no longer slow after step 6"]
    rows = list(read_rows(tmp_path / "ranks.jsonl"))
    assert rows[0] == {"step": 0, "event": "hosts", "hosts": ["node-a", "node-a", "node-b", "node-b"]}
    assert rows[-2] == {"step": 5, "forward_seconds": [0.2] * 4, "data_wait_seconds": [0.0, 0.0, 0.2, 0.0]}
    table.begin(4)  # a start that goes on after step 4
    table.close()
    assert [row["step"] for row in read_rows(tmp_path / "ranks.jsonl")] == [0, 1, 2, 3, 4, 4]


def test_a_share_of_nothing_names_nobody(four: Ranks, tmp_path: Path) -> None:
    said: list[str] = []
    table = RankTable(tmp_path / "ranks.jsonl", four, 0.0, said.append)
    table.begin(0)
    for step in range(1, 5):
        table.write(step, [FAST, FAST, FAST, RankTime(9.0, 9.0)])
    assert said == []


def test_a_long_table_shows_the_slowest(monkeypatch: pytest.MonkeyPatch, four: Ranks, tmp_path: Path) -> None:
    monkeypatch.setattr(rank_table, "SHOWN", 2)
    said: list[str] = []
    table = RankTable(tmp_path / "ranks.jsonl", four, 0.25, said.append)
    table.begin(0)
    for step in (1, 2):
        table.write(step, [FAST, RankTime(0.21, 0.0), RankTime(0.4, 0.0), FAST])
    assert [line.split()[0] for line in said[0].splitlines()[2:]] == ["2", "1"]


def test_the_recorder_divides_by_the_steps_since_the_last_log_step(
    four: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each step's forward passes take 0.5 s on every rank but rank 2, where they take 1.5 s."""
    words = ("steps=9", "telemetry.log_every=4", "telemetry.tensorboard=false")
    done = [0]

    def forward_seconds() -> float:
        passes, done[0] = step - done[0], step
        return 0.5 * passes

    with Telemetry(tiny_config(str(tmp_path), *words), four) as telemetry:
        telemetry.begin(0, Facts(samples_per_step=4, tokens_per_sample=1.0, flops_per_sample=1.0), resumed=None)
        for step in range(1, 10):
            telemetry.means.read = lambda ranks: ({"total_loss": 1.0}, 0, 0)  # type: ignore[assignment, return-value]
            terms = {"total_loss": torch.ones(()), "skipped": torch.zeros(())}
            telemetry.record(step, terms, {}, ["a"], {}, forward_seconds)
    rows = [json.loads(line) for line in (tmp_path / "ranks.jsonl").read_text().splitlines()]
    assert [(row["step"], row["forward_seconds"]) for row in rows[1:]] == [(s, [0.5, 0.5, 1.5, 0.5]) for s in (4, 8, 9)]
    assert "slow after step 8: rank 2 on node-b takes 1.5 s" in capsys.readouterr().out

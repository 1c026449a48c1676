"""Rows of a run on disk: cut off by a crash, set back to an earlier step, read while it is written."""

import json
import tracemalloc
from pathlib import Path

from trainer.telemetry.journal import Journal, read_rows


def test_setting_back_drops_later_rows_and_a_last_one_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.30000000000000004}\n{"step": 3}\n'
    file.write_text(whole + '{"step": 2, "values": {}')
    journal = Journal(file)
    journal.set_back(2)
    journal.write({"step": 3, "loss": 1 / 3})
    rows = [json.loads(line) for line in file.read_text().splitlines()]  # not closed yet
    assert rows == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.1 + 0.2}, {"step": 3, "loss": 1 / 3}]
    journal.set_back(1)
    journal.close()
    assert list(read_rows(file)) == rows[:1]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_appended_rows_follow_what_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "rollbacks.jsonl")
    assert list(read_rows(journal.path)) == []
    journal.append({"step": 4})
    with journal.path.open("a") as file:
        file.write('{"step": 5, "values": {}')  # cut off by a crash
    journal.append({"step": 2})
    assert [row["step"] for row in read_rows(journal.path)] == [4, 2]


def test_a_long_file_is_set_back_row_by_row(tmp_path: Path) -> None:
    """A run of millions of steps must not take memory for all of its rows at every start."""
    journal = Journal(tmp_path / "metrics.jsonl")
    row = json.dumps({"step": 1, "text": "x" * 1000})
    journal.path.write_text(f"{row}\n" * 3000)
    tracemalloc.start()
    journal.set_back(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    journal.close()
    assert journal.path.stat().st_size == 3000 * (len(row) + 1)
    assert peak < 300_000

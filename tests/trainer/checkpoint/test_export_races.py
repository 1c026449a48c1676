"""A checkpoint that the run removes while somebody exports or measures it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.numbers import opened as checkpoints_of
from tests.trainer.numbers import save
from trainer.checkpoint import export as exporting
from trainer.checkpoint.files import remove
from trainer.distributed import Ranks


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_checkpoint_that_is_pruned_while_it_is_read_is_told_as_such(
    after: int, alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nobody takes it for damaged."""
    run = checkpoints_of(alone, tmp_path / "run", ("checkpoint.keep=1",), lambda line: None)
    save(run, 10)
    fault: Callable[..., str] = exporting.fault
    looked: list[Any] = []

    def pruned_meanwhile(*words: Any) -> str:
        looked.append(words)
        if len(looked) == after:
            remove(run.folder / "step-00000010")
        return fault(*words)

    monkeypatch.setattr(exporting, "fault", pruned_meanwhile)
    with (
        pytest.raises(ValueError, match=r"step-00000010 was removed while it was read, as a run does"),
        exporting.opened(str(tmp_path / "run"), 10, None),
    ):
        pass


def test_where_the_newest_is_asked_for_the_next_one_is_taken(
    alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = checkpoints_of(alone, tmp_path / "run", ("checkpoint.keep=1",), lambda line: None)
    save(run, 10)
    fault: Callable[..., str] = exporting.fault

    def saved_meanwhile(*words: Any) -> str:
        if not (run.folder / "step-00000020").exists():
            save(run, 20)
            assert not (run.folder / "step-00000010").exists()
        return fault(*words)

    monkeypatch.setattr(exporting, "fault", saved_meanwhile)
    with exporting.opened(str(tmp_path / "run"), None, None) as found:
        assert found.directory == run.folder / "step-00000020"

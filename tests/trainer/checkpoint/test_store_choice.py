"""A store beside checkpoints here: what is damaged, or of another way of the run, and what that does to uploads."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.store.base import StoreError
from tests.trainer.checkpoint.uploads import Open, settle, store_of, watched
from tests.trainer.numbers import contents, flip_bit, names, resumed, save
from trainer.checkpoint.checkpoints import Checkpoints

PATIENCE_S = 60


def uploaded(checkpoints: Checkpoints, *steps: int) -> Checkpoints:
    """After these steps were saved, each uploaded before the next."""
    for step in steps:
        save(checkpoints, step)
        settle(checkpoints)
    return checkpoints


def test_what_is_damaged_in_the_store_is_not_made_complete_here_and_stays_there_to_be_looked_at(
    opened: Open, remote_folder: Path
) -> None:
    uploaded(opened(node="run"), 2, 4)
    flip_bit(remote_folder / "step-00000004" / "generator" / "rank-0.pt")
    fresh = opened(node="fresh")
    assert resumed(fresh) == 2
    assert names(fresh.folder) == ["step-00000002", "step-00000004"]  # nothing of its own was damaged
    assert not (fresh.folder / "step-00000004" / "COMPLETE").exists()
    uploaded(fresh, 5, 7)
    assert {key.split("/")[0] for key in contents(remote_folder)} == {f"step-{step:08d}" for step in (4, 5, 7)}


def test_what_is_missing_in_a_store_that_answers_is_damage(opened: Open, remote_folder: Path) -> None:
    """To start again, as with a store that does not answer, would be of no use."""
    uploaded(opened(node="run"), 2)
    (remote_folder / "step-00000002" / "rng-00000.pt").unlink()
    with pytest.raises(ValueError, match=r"every checkpoint .* is damaged: .*rng-00000\.pt is missing"):
        opened(node="fresh").newest()


def test_another_checkpoint_of_the_step_in_the_store_is_replaced(opened: Open, remote_folder: Path) -> None:
    """The run here goes on from its own, and so would a fresh node have to."""
    first = uploaded(opened(node="run"), 4)
    marker = remote_folder / "step-00000004" / "COMPLETE"
    marker.write_text(marker.read_text().replace('"sha256": "', '"sha256": "0'))
    again = opened(node="run")
    assert resumed(again) == 4
    settle(again)
    assert contents(remote_folder) == contents(first.folder)


def test_after_a_rollback_the_store_counts_only_what_is_left(opened: Open, remote_folder: Path) -> None:
    """Otherwise the checkpoints that went would push out those that the run goes on from."""
    checkpoints = uploaded(opened(node="run"), 2, 4)
    checkpoints.set_back(2)
    uploaded(checkpoints, 3)
    assert names(checkpoints.folder) == ["step-00000002", "step-00000003"]
    assert contents(remote_folder) == contents(checkpoints.folder)


def test_a_rollback_removes_the_newest_first(opened: Open, remote_folder: Path) -> None:
    """Cut off in the middle, it leaves a run without gaps, from whose newest checkpoint another one may go on."""
    checkpoints = uploaded(opened("checkpoint.keep=9", node="run"), 2, 4, 6, 8)
    log: list[tuple[str, str]] = []
    watched(store_of(checkpoints), log)
    checkpoints.set_back(4)
    folders = [key.partition("/")[0] for verb, key in log if verb == "delete"]
    assert list(dict.fromkeys(folders)) == ["step-00000008", "step-00000006"]


def test_a_rollback_removes_what_an_upload_that_was_cut_off_has_left(
    opened: Open, remote_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = uploaded(opened(node="run"), 2)
    assert checkpoints.uploads is not None
    store = store_of(checkpoints)
    write_file = store.write_file

    def cut(key: str, path: Path) -> None:
        if path.name == "state.json":
            raise StoreError("no route")
        write_file(key, path)

    monkeypatch.setattr(store, "write_file", cut)
    uploaded(checkpoints, 4)
    assert any(key.startswith("step-00000004/") for key in contents(remote_folder))
    checkpoints.set_back(2)
    assert {key.split("/")[0] for key in contents(remote_folder)} == {"step-00000002"}


def test_of_several_that_the_store_lacks_the_newest_goes_first(
    opened: Open, remote_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is lost meanwhile should lose as little as can be."""
    checkpoints = opened(node="run")
    assert checkpoints.uploads is not None
    store = store_of(checkpoints)

    def fail(key: str, path: Path) -> None:
        raise StoreError("no route")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_file", fail)
        uploaded(checkpoints, 2, 4)
    order: list[str] = []
    write = store.write
    monkeypatch.setattr(store, "write", lambda key, data: (order.append(key), write(key, data)))
    checkpoints.uploads.start_missing()
    settle(checkpoints)
    assert order == [f"step-{step:08d}/COMPLETE" for step in (4, 2)]
    assert contents(remote_folder) == contents(checkpoints.folder)

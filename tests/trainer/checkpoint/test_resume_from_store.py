"""A start that finds checkpoints in a store: fresh nodes, damage on either side, and a store that does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.store.base import StoreError
from tests.trainer.checkpoint.uploads import Open, objects, settle, store_of
from tests.trainer.numbers import contents, flip_bit, resumed, save

ROOT = Path(__file__).parents[3]


def test_cut_off_upload_is_never_fetched_and_in_the_end_removed(opened: Open, remote: str) -> None:
    first = opened()
    save(first, 2)
    settle(first)
    save(first, 4)
    settle(first)
    (Path(remote) / "step-00000004" / "COMPLETE").unlink()
    fresh = opened(node="fresh")
    assert resumed(fresh) == 2
    for step in (5, 7):
        save(fresh, step)
        settle(fresh)
    assert {key.split("/")[0] for key in objects(remote)} == {"step-00000005", "step-00000007"}


def test_damaged_checkpoint_in_the_store_is_passed_over_by_name(opened: Open, remote: str, messages: list[str]) -> None:
    first = opened()
    save(first, 2)
    settle(first)
    save(first, 4)
    settle(first)
    flip_bit(Path(remote) / "step-00000004" / "generator" / "rank-0.pt")
    before = objects(remote)
    fresh = opened(node="fresh")
    assert resumed(fresh) == 2
    assert f"warning: {fresh.folder}/step-00000004/generator/rank-0.pt has another content than was written" in (
        "\n".join(messages)
    )
    settle(fresh)
    assert objects(remote) == before, "what is damaged stays to be looked at"
    save(fresh, 4)  # the run gets there again, and what is damaged is replaced
    settle(fresh)
    assert resumed(opened(node="third")) == 4


def test_file_damaged_here_is_fetched_again(opened: Open, messages: list[str]) -> None:
    first = opened()
    save(first, 2)
    settle(first)
    folder = first.folder / "step-00000002"
    whole = contents(folder)
    flip_bit(folder / "generator" / "rank-0.pt")
    (folder / "rng-00000.pt").unlink()
    assert resumed(opened()) == 2
    assert contents(folder) == whole
    assert any("rank-0.pt has another content than was written (sha256): replaced from" in line for line in messages)


def test_store_with_another_checkpoint_of_the_step_repairs_nothing(opened: Open, remote: str) -> None:
    """Two runs went through step 4 in different ways; a mixture of them must not come about."""
    first = opened()
    save(first, 2)
    settle(first)
    save(first, 4)
    settle(first)
    other = Path(remote) / "step-00000004"
    text = (other / "COMPLETE").read_text()
    (other / "COMPLETE").write_text(text.replace('"sha256": "', '"sha256": "0'))
    (first.folder / "step-00000004" / "rng-00000.pt").unlink()
    assert resumed(opened()) == 2


def test_unreachable_store(opened: Open, messages: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a checkpoint here the run goes on; without one, nobody knows whether it would start from nothing."""
    monkeypatch.setattr("data_pipeline.store.base.time.sleep", lambda seconds: None)
    for name, value in {
        "ENDPOINT_URL": "http://127.0.0.1:9",
        "ACCESS_KEY_ID": "key",
        "SECRET_ACCESS_KEY": "topsecret",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    unreachable = opened(upload="s3://bucket/run")
    with pytest.raises(StoreError, match="no checkpoint here, and whether the store has one is not known: s3://bucket"):
        unreachable.newest()
    save(unreachable, 2)
    settle(unreachable)
    again = opened(upload="s3://bucket/run")
    assert resumed(again) == 2
    settle(again)
    assert "Going on from what is here" in "\n".join(messages)
    assert messages[0].startswith("warning: step-00000002 was not uploaded: s3://bucket/run/")
    assert "topsecret" not in "\n".join(messages)
    assert b"topsecret" not in b"".join(contents(tmp_path).values())


def test_store_that_fails_while_fetching_is_no_damage(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error that passes: whoever started the run may start it again."""
    first = opened()
    save(first, 2)
    settle(first)
    fresh = opened(node="fresh")

    def fail(key: str, path: Path, arrived: Callable[[int], None]) -> int:
        raise StoreError(f"{key}: failed 8 times")

    monkeypatch.setattr(store_of(fresh), "read_to_file", fail)
    with pytest.raises(StoreError, match="no whole checkpoint here, and the store fails: step-00000002/"):
        fresh.newest()
    assert resumed(opened(node="fresh")) == 2


def test_resume_never_looks_into_the_store_too(opened: Open, remote: str) -> None:
    first = opened()
    save(first, 2)
    settle(first)
    with pytest.raises(ValueError, match=r"remote holds step-00000002 and checkpoint\.resume=never"):
        opened("checkpoint.resume=never", node="fresh").newest()


def test_resume_never_names_the_place_of_the_newest(opened: Open, remote: str) -> None:
    """A node that was away for a while has an older checkpoint of its own."""
    early, late = opened(node="early"), opened(node="late")
    save(late, 2)
    for step in (2, 4):
        save(early, step)
        settle(early)
    settle(late)
    for node, place in (("late", remote), ("early", str(early.folder))):
        with pytest.raises(ValueError, match=f"^{place} holds step-00000004 and checkpoint.resume=never"):
            opened("checkpoint.resume=never", node=node).newest()


@pytest.mark.slow
def test_nodes_without_a_common_disk(tmp_path: Path) -> None:
    """Ranks 0 and 1 on one disk, rank 2 on another: saved apart, uploaded together, and a lost disk is made whole."""
    environment = os.environ | {"WORLD_SIZE": "3", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.trainer.checkpoint.disks", str(tmp_path)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(3)
    ]
    texts = [process.communicate(timeout=90)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(texts)
    apart, together = contents(tmp_path / "seen" / "0"), contents(tmp_path / "seen" / "2")
    assert set(together) == {"generator/rank-2.pt", "rng-00002.pt", "COMPLETE"}
    assert set(apart) & set(together) == {"COMPLETE"}
    uploaded = contents(tmp_path / "remote" / "step-00000002")
    assert uploaded == apart | together
    assert contents(tmp_path / "disk-2" / "run" / "checkpoints" / "step-00000002") == uploaded  # it came back whole
    assert "checkpoint.upload=s3://BUCKET/RUN" in (tmp_path / "refusal").read_text()
    assert_other_addresses_are_refused(tmp_path)


def assert_other_addresses_are_refused(folder: Path) -> None:
    """Each refusal is one line, the same on every rank, with what is true and a remedy that the ranks have tried."""
    remote, other = folder / "remote", folder / "other"

    def refusal(name: str) -> str:
        (line,) = {(folder / f"{name}-{rank}").read_text() for rank in range(3)}
        return line

    back = refusal("back")
    assert back.startswith(f"checkpoint.resume=4: {remote} holds later checkpoints up to step-00000006, which going ")
    assert f"set another checkpoint.upload and copy step-00000004 from {remote} to it, or start " in back
    assert back.endswith(f"with fork_from={remote}@4")
    changed = (
        f"checkpoint.upload changed from {remote} to {other}, and {other} does not hold step-0000000{{step}}, of which "
        "some disks here lack files that other disks have: "
    )
    nothing = " Nothing is damaged, and nothing was changed"
    assert refusal("back-elsewhere") == changed.format(step=4) + (
        f"copy step-00000004 from {remote} to {other}, or start another run with fork_from={remote}@4.{nothing}"
    )
    for name in ("elsewhere", "elsewhere-with-an-older-one"):
        assert refusal(name) == changed.format(step=6) + (
            f"set checkpoint.upload={remote} again, or copy step-00000006 from {remote} to {other}.{nothing}"
        )

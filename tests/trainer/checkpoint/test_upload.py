"""Checkpoints on their way to a store, a folder and S3: in the background, pruned, retried, waited for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from data_pipeline.store.base import StoreError
from tests.trainer.cases import tiny_config
from tests.trainer.checkpoint.uploads import Open, objects, settle, store_of, watched
from tests.trainer.numbers import contents, names, resumed, save


def check_upload_prune_and_fetch(opened: Open, messages: list[str], uri: str, tmp_path: Path) -> None:
    """The whole life of checkpoints in a store, in whichever."""
    checkpoints = opened("checkpoint.keep_every=4", upload=uri)
    log: list[tuple[str, str]] = []
    watched(store_of(checkpoints), log)
    for step in (2, 4, 6, 8, 10):
        save(checkpoints, step)
        settle(checkpoints)
        folder = f"step-{step:08d}"
        puts = [key for verb, key in log if verb == "put" and key.startswith(folder)]
        assert puts[-1] == f"{folder}/COMPLETE"
        assert sorted(set(puts)) == sorted(f"{folder}/{name}" for name in contents(checkpoints.folder / folder))
    assert objects(uri) == contents(checkpoints.folder)
    assert names(checkpoints.folder) == [f"step-{step:08d}" for step in (4, 8, 10)]
    for step in (2, 6):
        deleted = [key for verb, key in log if verb == "delete" and key.startswith(f"step-{step:08d}")]
        assert deleted[1] == f"step-{step:08d}/COMPLETE", "the marker must go first (once before the upload, too)"
        assert len(deleted) == 1 + len(contents(checkpoints.folder / "step-00000004"))
    metrics = checkpoints.take_metrics()
    assert metrics["upload_bytes"] == metrics["save_bytes"] > 0
    assert messages == []

    fresh = opened(upload=uri, node="fresh")
    assert resumed(fresh) == 10
    assert contents(fresh.folder / "step-00000010") == contents(checkpoints.folder / "step-00000010")
    settle(fresh)
    assert sorted({key.split("/")[0] for key in objects(uri)}) == [f"step-{step:08d}" for step in (4, 8, 10)]


def test_upload_prune_and_fetch_with_a_folder(opened: Open, messages: list[str], remote: str, tmp_path: Path) -> None:
    check_upload_prune_and_fetch(opened, messages, remote, tmp_path)


@pytest.mark.s3
def test_upload_prune_and_fetch_with_s3(opened: Open, messages: list[str], s3_uri: str, tmp_path: Path) -> None:
    check_upload_prune_and_fetch(opened, messages, s3_uri, tmp_path)


def test_training_goes_on_while_an_upload_hangs_and_its_files_stay(
    opened: Open, messages: list[str], remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = opened("checkpoint.keep=1", "checkpoint.upload_wait_stopped=0.3")
    release, store = threading.Event(), store_of(checkpoints)
    write_file = store.write_file
    monkeypatch.setattr(store, "write_file", lambda key, path: (release.wait(60), write_file(key, path)))
    save(checkpoints, 2, 4, 6)
    assert names(checkpoints.folder) == ["step-00000002", "step-00000006"]  # the first is in the hanging upload
    begin = time.monotonic()
    assert checkpoints.finish(lambda: True)
    assert time.monotonic() - begin < 30
    assert messages == [
        f"the run waits at most 0.3 s for the upload to {remote}",
        "the upload did not end in 0.3 s; the same command goes on with it",
    ]
    assert [key for key in objects(remote) if key.endswith("COMPLETE")] == []
    release.set()
    settle(checkpoints)
    save(checkpoints, 8)
    assert names(checkpoints.folder) == ["step-00000008"]
    assert not checkpoints.finish(lambda: False)
    assert objects(remote) == contents(checkpoints.folder)


def test_told_to_stop_while_the_last_upload_is_waited_for(
    opened: Open, messages: list[str], remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = opened("checkpoint.upload_wait=600", "checkpoint.upload_wait_stopped=0.3")
    release, store = threading.Event(), store_of(checkpoints)
    write_file = store.write_file
    monkeypatch.setattr(store, "write_file", lambda key, path: (release.wait(60), write_file(key, path)))
    monkeypatch.setattr("trainer.checkpoint.joint_upload.FINISH_POLL_S", 0.05)
    save(checkpoints, 2)
    assert checkpoints.finish(lambda: bool(messages))  # told after the first line
    assert messages == [
        f"the run waits at most 600 s for the upload to {remote}",
        f"because the run was asked to stop, it waits at most 0.3 s for the upload to {remote}",
        "the upload did not end in 0.3 s; the same command goes on with it",
    ]
    release.set()
    settle(checkpoints)


def test_a_run_is_not_set_back_under_an_upload_that_would_put_the_removed_checkpoint_back(
    opened: Open, remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = opened("checkpoint.upload_wait=0.2")
    release, store = threading.Event(), store_of(checkpoints)
    save(checkpoints, 2)
    settle(checkpoints)
    write_file = store.write_file
    monkeypatch.setattr(store, "write_file", lambda key, path: (release.wait(60), write_file(key, path)))
    save(checkpoints, 4)
    with pytest.raises(StoreError, match=r"the upload that is going on has not ended in 0\.2 s"):
        checkpoints.set_back(2)
    release.set()
    settle(checkpoints)
    checkpoints.set_back(2)
    assert {key.split("/")[0] for key in objects(remote)} == {"step-00000002"}
    assert names(checkpoints.folder) == ["step-00000002"]


def test_failed_upload_is_told_counted_and_tried_again(
    opened: Open, messages: list[str], remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = opened("checkpoint.keep=1", "checkpoint.keep_every=4")  # 4 stays, and is to be uploaded with 6
    broken: list[str] = ["rng-00000.pt"]
    store = store_of(checkpoints)
    write_file = store.write_file

    def refuse(key: str, path: Path) -> None:
        if path.name in broken:
            raise StoreError(f"{store.uri(key)}: failed 8 times, last: no route")
        write_file(key, path)

    monkeypatch.setattr(store, "write_file", refuse)
    for count, step in enumerate((2, 4), start=1):
        save(checkpoints, step)
        settle(checkpoints)
        assert len(messages) == count
        assert (
            f"step-{step:08d} was not uploaded: {remote}/step-{step:08d}/rng-00000.pt: failed 8 times" in messages[-1]
        )
        assert f"uploads that failed so far: {count}" in messages[-1]
        assert checkpoints.take_metrics()["upload_failures"] == count
    assert [key for key in objects(remote) if key.endswith("COMPLETE")] == []
    broken.clear()
    save(checkpoints, 6)
    settle(checkpoints)
    assert objects(remote) == contents(checkpoints.folder)


def test_killed_in_an_upload_the_same_command_uploads_it(opened: Open, remote: str, messages: list[str]) -> None:
    first = opened()
    save(first, 2)
    settle(first)
    save(first, 4)
    settle(first)
    (Path(remote) / "step-00000004" / "COMPLETE").unlink()  # as it looks just before the marker is put
    (Path(remote) / "step-00000004" / "config.yaml").write_text("another upload's")
    again = opened()
    assert resumed(again) == 4
    settle(again)
    assert objects(remote) == contents(first.folder)
    assert messages == []


def test_credentials_in_the_address_are_refused_without_repeating_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.upload: .*must not hold credentials") as refused:
        tiny_config(str(tmp_path), "checkpoint.upload=s3://key:topsecret@bucket/run")
    assert "topsecret" not in str(refused.value)

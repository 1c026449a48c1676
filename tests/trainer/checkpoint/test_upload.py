"""Uploading in the background, pruning there, failing stores, and a fresh node that fetches: on a folder and on S3."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.store.base import Store, StoreError
from data_pipeline.store.open import open_store
from tests.trainer import numbers
from tests.trainer.cases import tiny_config
from tests.trainer.numbers import contents, flip_bit, names, resumed, save
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.distributed import Ranks

ROOT = Path(__file__).parents[3]
Open = Callable[..., Checkpoints]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def remote(tmp_path: Path) -> str:
    return str(tmp_path / "remote")


@pytest.fixture
def opened(alone: Ranks, tmp_path: Path, remote: str, said: list[str]) -> Open:
    """The checkpoints of a run on the node `run`, or on one of another name, as a new process sees them."""

    def open_it(*words: str, node: str = "run", upload: str = remote) -> Checkpoints:
        settings = (f"checkpoint.upload={upload}", "checkpoint.keep=2", *words)
        return numbers.opened(alone, tmp_path / node, settings, said.append)

    return open_it


def store_of(checkpoints: Checkpoints) -> Any:
    """The store itself, to be watched or disturbed."""
    assert checkpoints.uploads is not None
    return checkpoints.uploads.uploader.remote.store


def settle(checkpoints: Checkpoints) -> None:
    """Until the upload that is going on has ended, well or not."""
    assert checkpoints.uploads is not None
    checkpoints.uploads.uploader.wait(300)
    assert not checkpoints.uploads.uploader.busy()


def objects(uri: str) -> dict[str, bytes]:
    store = open_store(uri)
    return {key: store.read(key) for key in store.keys()}


def watched(store: Store, log: list[tuple[str, str]]) -> None:
    """Note in `log` which keys are written and deleted, in order."""
    for verb in ("write", "write_file", "delete"):
        call = getattr(store, verb)

        def noted(key: str, *rest: Any, verb: str = verb, call: Callable[..., None] = call) -> None:
            call(key, *rest)
            log.append(("delete" if verb == "delete" else "put", key))

        setattr(store, verb, noted)


def check_upload_prune_and_fetch(opened: Open, said: list[str], uri: str, tmp_path: Path) -> None:
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
    for gone in (2, 6):
        deleted = [key for verb, key in log if verb == "delete" and key.startswith(f"step-{gone:08d}")]
        assert deleted[1] == f"step-{gone:08d}/COMPLETE", "the marker must go first (once before the upload, too)"
        assert len(deleted) == 1 + len(contents(checkpoints.folder / "step-00000004"))
    news = checkpoints.news()
    assert news["upload_bytes"] == news["save_bytes"] > 0
    assert said == []

    fresh = opened(upload=uri, node="fresh")
    assert resumed(fresh) == 10
    assert contents(fresh.folder / "step-00000010") == contents(checkpoints.folder / "step-00000010")
    settle(fresh)
    assert sorted({key.split("/")[0] for key in objects(uri)}) == [f"step-{step:08d}" for step in (4, 8, 10)]


def test_upload_prune_and_fetch_with_a_folder(opened: Open, said: list[str], remote: str, tmp_path: Path) -> None:
    check_upload_prune_and_fetch(opened, said, remote, tmp_path)


@pytest.mark.s3
def test_upload_prune_and_fetch_with_s3(opened: Open, said: list[str], s3_uri: str, tmp_path: Path) -> None:
    check_upload_prune_and_fetch(opened, said, s3_uri, tmp_path)


def test_training_goes_on_while_an_upload_hangs_and_its_files_stay(
    opened: Open, said: list[str], remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = opened("checkpoint.keep=1", "checkpoint.upload_wait_stopped=0.3")
    release, store = threading.Event(), store_of(checkpoints)
    write_file = store.write_file
    monkeypatch.setattr(store, "write_file", lambda key, path: (release.wait(600), write_file(key, path)))
    save(checkpoints, 2, 4, 6)
    assert names(checkpoints.folder) == ["step-00000002", "step-00000006"]  # the first is in the hanging upload
    begin = time.monotonic()
    assert checkpoints.finish(lambda: True)
    assert time.monotonic() - begin < 30
    assert said == [
        f"waiting up to 0.3 s for the upload to {remote}",
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
    opened: Open, said: list[str], remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = opened("checkpoint.upload_wait=600", "checkpoint.upload_wait_stopped=0.3")
    release, store = threading.Event(), store_of(checkpoints)
    write_file = store.write_file
    monkeypatch.setattr(store, "write_file", lambda key, path: (release.wait(600), write_file(key, path)))
    monkeypatch.setattr("trainer.checkpoint.joint_upload.FINISH_POLL_S", 0.05)
    save(checkpoints, 2)
    assert checkpoints.finish(lambda: bool(said))  # told after the first line
    assert said == [
        f"waiting up to 600 s for the upload to {remote}",
        f"told to stop: waiting up to 0.3 s for the upload to {remote}",
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
    monkeypatch.setattr(store, "write_file", lambda key, path: (release.wait(600), write_file(key, path)))
    save(checkpoints, 4)
    with pytest.raises(StoreError, match=r"the upload that is going on has not ended in 0\.2 s"):
        checkpoints.set_back(2)
    release.set()
    settle(checkpoints)
    checkpoints.set_back(2)
    assert {key.split("/")[0] for key in objects(remote)} == {"step-00000002"}
    assert names(checkpoints.folder) == ["step-00000002"]


def test_failed_upload_is_told_counted_and_tried_again(
    opened: Open, said: list[str], remote: str, monkeypatch: pytest.MonkeyPatch
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
        assert len(said) == count
        assert f"step-{step:08d} was not uploaded: {remote}/step-{step:08d}/rng-00000.pt: failed 8 times" in said[-1]
        assert f"uploads that failed so far: {count}" in said[-1]
        assert checkpoints.news()["upload_failures"] == count
    assert [key for key in objects(remote) if key.endswith("COMPLETE")] == []
    broken.clear()
    save(checkpoints, 6)
    settle(checkpoints)
    assert objects(remote) == contents(checkpoints.folder)


def test_killed_in_an_upload_the_same_command_uploads_it(opened: Open, remote: str, said: list[str]) -> None:
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
    assert said == []


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


def test_damaged_checkpoint_in_the_store_is_passed_over_by_name(opened: Open, remote: str, said: list[str]) -> None:
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
        "\n".join(said)
    )
    settle(fresh)
    assert objects(remote) == before, "what is damaged stays to be looked at"
    save(fresh, 4)  # the run gets there again, and what is damaged is replaced
    settle(fresh)
    assert resumed(opened(node="third")) == 4


def test_file_damaged_here_is_fetched_again(opened: Open, said: list[str]) -> None:
    first = opened()
    save(first, 2)
    settle(first)
    folder = first.folder / "step-00000002"
    whole = contents(folder)
    flip_bit(folder / "generator" / "rank-0.pt")
    (folder / "rng-00000.pt").unlink()
    assert resumed(opened()) == 2
    assert contents(folder) == whole
    assert any("rank-0.pt has another content than was written (sha256): replaced from" in line for line in said)


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


def test_unreachable_store(opened: Open, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    assert "Going on from what is here" in "\n".join(said)
    assert said[0].startswith("warning: step-00000002 was not uploaded: s3://bucket/run/")
    assert "topsecret" not in "\n".join(said)
    assert b"topsecret" not in b"".join(contents(tmp_path).values())


def test_store_that_fails_while_fetching_is_no_damage(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error that passes: whoever started the run may start it again."""
    first = opened()
    save(first, 2)
    settle(first)
    fresh = opened(node="fresh")

    def fail(key: str, path: Path) -> int:
        raise StoreError(f"{key}: failed 8 times")

    monkeypatch.setattr(store_of(fresh), "read_to_file", fail)
    with pytest.raises(StoreError, match="no whole checkpoint here, and the store fails: step-00000002/"):
        fresh.newest()
    assert resumed(opened(node="fresh")) == 2


def test_credentials_in_the_address_are_refused_without_repeating_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.upload: .*must not hold credentials") as refused:
        tiny_config(str(tmp_path), "checkpoint.upload=s3://key:topsecret@bucket/run")
    assert "topsecret" not in str(refused.value)


def test_resume_never_looks_into_the_store_too(opened: Open, remote: str) -> None:
    first = opened()
    save(first, 2)
    settle(first)
    with pytest.raises(ValueError, match=r"remote holds step-00000002 and checkpoint\.resume=never"):
        opened("checkpoint.resume=never", node="fresh").newest()


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
    texts = [process.communicate(timeout=400)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(texts)
    apart, together = contents(tmp_path / "seen" / "0"), contents(tmp_path / "seen" / "2")
    assert set(together) == {"generator/rank-2.pt", "rng-00002.pt", "COMPLETE"}
    assert set(apart) & set(together) == {"COMPLETE"}
    uploaded = contents(tmp_path / "remote" / "step-00000002")
    assert uploaded == apart | together
    assert contents(tmp_path / "disk-2" / "run" / "checkpoints" / "step-00000002") == uploaded  # it came back whole
    assert "checkpoint.upload=s3://BUCKET/RUN" in (tmp_path / "refusal").read_text()

"""What a store may hold: no marker before all files, nothing old under a new name; and how the last upload ends."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data_pipeline.read.loader import Position
from data_pipeline.store.base import StoreError
from data_pipeline.store.files import TEMPORARY
from tests.trainer import numbers
from tests.trainer.checkpoint.uploads import Open, settle, store_of
from tests.trainer.numbers import LOADER, Number, contents, names, resumed, save
from trainer.checkpoint import joint_upload, upload
from trainer.checkpoint.checkpoints import Checkpoints
from trainer.checkpoint.files import MARKER, read_marker, step_name
from trainer.checkpoint.retention import Retention
from trainer.checkpoint.shared_disks import SharedDisks
from trainer.checkpoint.upload import Remote, Uploader, UploadJob
from trainer.config.running import CheckpointConfig
from trainer.distributed import Ranks

PATIENCE_S = 60
OpenEnding = Callable[..., Checkpoints]


def test_a_step_that_is_saved_anew_is_uploaded_anew(opened: Open, remote_folder: Path) -> None:
    """The run came to step 4 on another way, and the store must not keep the first one under that name."""
    checkpoints = opened(node="run")
    save(checkpoints, 4)
    settle(checkpoints)
    before = contents(remote_folder)
    checkpoints.save(4, Position(0, 16), Number(4000), LOADER, wait=True)
    settle(checkpoints)
    assert contents(remote_folder) == contents(checkpoints.folder)
    assert contents(remote_folder) != before


def test_a_newer_checkpoint_in_the_store_is_preferred_to_an_older_one_here(opened: Open, remote_folder: Path) -> None:
    """As on a node that another one took over from, and that the run comes back to."""
    first = opened(node="run")
    save(first, 4)
    settle(first)
    shutil.copytree(first.folder, first.folder.parents[1] / "other" / "checkpoints")
    save(first, 8)
    settle(first)
    other = opened(node="other")
    assert names(other.folder) == ["step-00000004"]
    assert resumed(other) == 8
    assert contents(other.folder / step_name(8)) == contents(first.folder / step_name(8))


class _Parts:
    """The uploader of the first of two disks, and what the other disk's would do."""

    def __init__(self, folder: Path, remote_folder: Path) -> None:
        self.remote = Remote(str(remote_folder))
        self.said: list[str] = []
        self.looks = threading.Semaphore(0)
        arrived = self.remote.arrived

        def look(step: int, part: int, token: str) -> bool:
            found = arrived(step, part, token)
            self.looks.release()
            return found

        self.remote.arrived = look  # type: ignore[method-assign]
        self.uploader = Uploader(self.remote, folder, Retention(CheckpointConfig(keep=9)), 0, 2, self.said.append)
        self.marker = (folder / step_name(2) / MARKER).read_text()
        self.token = hashlib.sha256(self.marker.encode()).hexdigest()
        files = sorted(read_marker(self.marker))
        self.mine, self.others = files[:2], files[2:]
        self.uploader.start([UploadJob(2, self.marker, self.mine)])

    def look_on(self, times: int = 3) -> None:
        """Until the uploader has looked some times more for the other disk's files, in vain."""
        for _ in range(times):
            assert self.looks.acquire(timeout=PATIENCE_S)

    def end(self) -> None:
        self.uploader.wait(PATIENCE_S)
        assert not self.uploader.busy()


@pytest.fixture
def parts(opened: Open, alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Parts:
    monkeypatch.setattr(upload, "POLL_S", 0.01)
    saved = numbers.opened(alone, tmp_path / "run", ())
    save(saved, 2)
    return _Parts(saved.folder, tmp_path / "remote")


def test_the_marker_is_put_when_the_files_of_every_disk_are_there(parts: _Parts, remote_folder: Path) -> None:
    folder = step_name(2)
    parts.look_on()
    assert set(contents(remote_folder)) == {f"{folder}/{name}" for name in parts.mine}
    parts.remote.put(2, "parts/1", "of an earlier upload of this step")
    parts.look_on()
    assert f"{folder}/{MARKER}" not in contents(remote_folder)
    for name in parts.others:
        parts.remote.put(2, name, parts.uploader.folder / folder / name)
    parts.remote.put(2, "parts/1", parts.token)
    parts.end()
    assert parts.said == []
    assert contents(remote_folder / folder) == contents(parts.uploader.folder / folder)
    assert parts.uploader.has(2)


@pytest.mark.parametrize("part", [0, 1])
def test_of_several_disks_the_first_one_removes_what_a_rollback_gives_up(
    opened: Open, remote_folder: Path, part: int
) -> None:
    """Another one that removed it later could meet the next checkpoint of that step."""
    checkpoints = opened()
    for step in (2, 4):
        save(checkpoints, step)
        settle(checkpoints)
    before = contents(remote_folder)
    retention = Retention(CheckpointConfig(keep=9))
    uploader = Uploader(Remote(str(remote_folder)), checkpoints.folder, retention, part, 2, print)
    uploader.set_stored({2, 4}, set())
    uploader.set_back(2)
    left = {key: data for key, data in before.items() if part == 1 or key.startswith(step_name(2))}
    assert contents(remote_folder) == left
    assert not uploader.has(4)


def test_what_another_disks_uploader_has_half_written_stays(parts: _Parts, remote_folder: Path) -> None:
    """It lives, on another machine, whose locks a network file system may not show here."""
    half = remote_folder / step_name(2) / f"{TEMPORARY}1234-of-another-machine"
    parts.look_on()
    parts.uploader.others_are_idle()
    parts.end()
    half.write_bytes(b"the first half")
    parts.uploader.start([UploadJob(2, parts.marker, parts.mine)])
    parts.look_on()
    parts.remote.put(2, "parts/1", parts.token)
    parts.end()
    assert (remote_folder / step_name(2) / MARKER).is_file()
    assert half.read_bytes() == b"the first half"


def test_files_that_will_not_come_are_not_waited_for_and_leave_no_marker(parts: _Parts, remote_folder: Path) -> None:
    parts.look_on()
    parts.uploader.others_are_idle()
    parts.end()
    (line,) = parts.said
    assert "step-00000002 was not uploaded:" in line
    assert "another node has not put its files" in line
    assert set(contents(remote_folder)) == {f"{step_name(2)}/{name}" for name in parts.mine}
    assert not parts.uploader.has(2)
    assert parts.uploader.failures == 1


def test_files_that_arrived_before_the_other_node_was_idle_count(parts: _Parts, remote_folder: Path) -> None:
    """It is idle because it is done; what it put must be looked for once more."""
    parts.look_on()
    for name in parts.others:
        parts.remote.put(2, name, parts.uploader.folder / step_name(2) / name)
    parts.remote.put(2, "parts/1", parts.token)
    parts.uploader.others_are_idle()
    parts.end()
    assert parts.said == []
    assert (remote_folder / step_name(2) / MARKER).is_file()
    parts.uploader.start([UploadJob(2, parts.marker, parts.mine)])
    parts.look_on()  # that it was idle then says nothing about this upload
    assert parts.uploader.busy() == [2]
    parts.remote.put(2, "parts/1", parts.token)
    parts.end()
    assert parts.said == []


def test_files_that_arrive_just_after_a_look_are_found_by_the_next(parts: _Parts, remote_folder: Path) -> None:
    """The other node puts its last file and is idle between the look for it and the question whether it is idle."""
    arrived = parts.remote.arrived

    def too_early(step: int, part: int, token: str) -> bool:
        parts.remote.arrived = arrived  # type: ignore[method-assign]
        found = arrived(step, part, token)
        for name in parts.others:
            parts.remote.put(2, name, parts.uploader.folder / step_name(2) / name)
        parts.remote.put(2, "parts/1", parts.token)
        parts.uploader.others_are_idle()
        return found

    parts.remote.arrived = too_early  # type: ignore[method-assign]
    parts.end()
    assert parts.said == []
    assert (remote_folder / step_name(2) / MARKER).is_file()


# ---- at the end of a run --------------------------------------------------------------------------------------------


@pytest.fixture
def ending(opened: Open, monkeypatch: pytest.MonkeyPatch) -> OpenEnding:
    """A run's checkpoints with an upload that begins with `put`, in place of writing a file."""
    monkeypatch.setattr("trainer.checkpoint.joint_upload.FINISH_POLL_S", 0.02)

    def begin(put: Callable[[], None], *words: str) -> Checkpoints:
        checkpoints = opened("checkpoint.keep=1", *words)
        store = store_of(checkpoints)
        write_file = store.write_file
        monkeypatch.setattr(store, "write_file", lambda key, path: (put(), write_file(key, path)))
        return checkpoints

    return begin


def test_what_had_to_stay_for_an_upload_goes_at_the_end(ending: OpenEnding, remote_folder: Path) -> None:
    release = threading.Event()
    checkpoints = ending(lambda: release.wait(PATIENCE_S))
    save(checkpoints, 2, 4)
    assert names(checkpoints.folder) == ["step-00000002", "step-00000004"]
    assert not checkpoints.finish(lambda: bool(release.set()))
    assert names(checkpoints.folder) == ["step-00000004"]
    assert contents(remote_folder) == contents(checkpoints.folder)


def fail() -> None:
    raise StoreError("no route")


@pytest.mark.parametrize("told", [False, True])
def test_an_upload_that_fails_at_the_end_is_tried_by_the_next_start_which_a_stop_brings_about(
    ending: OpenEnding, messages: list[str], told: bool
) -> None:
    checkpoints = ending(fail, "checkpoint.upload_wait=20")
    save(checkpoints, 2)
    assert checkpoints.finish(lambda: told) is told
    failures = [line for line in messages if "step-00000002 was not uploaded: no route" in line]
    assert 1 <= len(failures) <= 2  # once by the save, at most once more by the end: no endless row
    assert "uploaded to" not in "\n".join(messages).replace("not uploaded", "")


def test_a_stop_never_lengthens_the_wait(ending: OpenEnding, messages: list[str]) -> None:
    release = threading.Event()
    words = ("checkpoint.upload_wait=0.5", "checkpoint.upload_wait_stopped=40")
    checkpoints = ending(lambda: release.wait(PATIENCE_S), *words)
    save(checkpoints, 2)
    assert checkpoints.finish(lambda: bool(messages))  # told after the first line
    release.set()
    settle(checkpoints)
    (hurried,) = [line for line in messages if line.startswith("because the run was asked to stop, it waits at most ")]
    assert float(hurried.removeprefix("because the run was asked to stop, it waits at most ").split()[0]) <= 0.5


@pytest.mark.parametrize("error", [PermissionError("403 Forbidden"), FileNotFoundError("no such bucket")])
def test_a_store_that_cannot_be_meant_is_refused_although_there_is_a_checkpoint_here(
    opened: Open, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """A key or a bucket that is wrong stays wrong, unlike a store that does not answer."""
    first = opened(node="run")
    save(first, 2)
    settle(first)

    def survey(remote: Remote) -> None:
        raise error

    monkeypatch.setattr(Remote, "survey", survey)
    with pytest.raises(ValueError, match=rf"checkpoint\.upload cannot be read: {error}"):
        opened(node="run").newest()


class _Heard(Ranks):
    """Two ranks, the second of which uploads what `others` says."""

    def gather(self, value: list[int]) -> list[list[int]]:
        return [value, list(self.control)]


@pytest.mark.parametrize(("others", "told"), [([], True), ([4], False)])
def test_the_first_node_hears_when_it_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[int], told: bool
) -> None:
    told_idle: list[bool] = []
    ranks = _Heard(0, 2, 0, torch.device("cpu"), others)
    settings = CheckpointConfig(upload=str(tmp_path / "remote"))
    uploader = SimpleNamespace(busy=lambda: [4], others_are_idle=lambda: told_idle.append(True))
    monkeypatch.setattr(joint_upload, "Uploader", lambda *arguments: uploader)
    remote = Remote(settings.upload)
    joint = joint_upload.JointUpload(
        Retention(settings), remote, tmp_path / "run", ranks, SharedDisks([[0], [1]], 0), print
    )
    assert joint.start_missing()
    assert told_idle == [True] * told

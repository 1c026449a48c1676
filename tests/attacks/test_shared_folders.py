"""What another user can put into a folder for temporary files: a FIFO or a link where a lock is looked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.build.worker import scratch_folder
from data_pipeline.outside.regular import NotRegular
from tests.trainer.conftest import alone
from trainer.checkpoint.staging import Staging
from trainer.distributed import Ranks
from trainer.faults.output_lock import Unwritable, held

__all__ = ["alone"]

pytestmark = pytest.mark.timeout(60)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [fifo, link])
def test_a_lock_that_is_none_is_left_alone(make: Callable[[Path], None], tmp_path: Path) -> None:
    theirs = tmp_path / "vidtwin-unit-x"
    theirs.mkdir()
    make(theirs / ".lock")
    with scratch_folder(str(tmp_path)) as mine:
        assert mine.is_dir()
    assert theirs.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_folder_of_another_user_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "vidtwin-unit-x"
    theirs.mkdir()
    (theirs / ".lock").touch()
    os.chown(theirs / ".lock", 65534, 65534)
    with scratch_folder(str(tmp_path)):
        pass
    assert theirs.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_save_never_goes_through_a_folder_of_another_user(alone: Ranks, tmp_path: Path) -> None:
    staging = Staging(str(tmp_path), tmp_path, alone, print)
    staging.root.mkdir()
    os.chown(staging.root, 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to another user"):
        staging.prepare()


def test_a_link_in_the_place_of_the_memory_of_a_run_is_a_refusal_and_is_not_followed(
    alone: Ranks, tmp_path: Path
) -> None:
    staging = Staging(str(tmp_path), tmp_path, alone, print)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").touch()
    staging.root.symlink_to(tmp_path / "home")
    message = rf"^checkpoint\.staging={tmp_path}: {staging.root} cannot be removed \(.*link\); remove it, or set"
    with pytest.raises(ValueError, match=message):
        staging.remove_leftovers()
    assert (tmp_path / "home" / "file").exists()


def test_an_output_whose_lock_is_a_fifo_is_refused(alone: Ranks, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises((Unwritable, NotRegular), match="no regular file"), held(tmp_path, alone, print):
        pass

"""Refusals begin with the option that names what could not be opened, and stay errors of their kind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from data_pipeline.outside.naming import naming
from launch.exit_status import described


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("a/config.yaml has no section"), "--model a/config.yaml has no section"),
        (ValueError("--model a has other weights"), "--model a has other weights"),
        (FileNotFoundError("a/config.yaml not found"), "--model a/config.yaml not found"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "--model a: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", Path("a")), "--model a: Permission denied"),
    ],
)
def test_the_option_stands_once_before_the_message(error: ValueError | OSError, shown: str) -> None:
    with pytest.raises(type(error)) as told, naming("--model "):
        raise error
    assert told.value is error
    assert described(told.value) == shown


def test_an_error_of_the_system_is_named_like_one_of_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told, naming("--model "):
        os.stat(tmp_path / "nothing")
    assert told.value.errno == errno.ENOENT
    assert described(told.value) == f"--model {tmp_path / 'nothing'}: No such file or directory"

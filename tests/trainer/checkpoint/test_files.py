"""Which checkpoints may go, and how a damaged file is described."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from trainer.checkpoint import files


@pytest.mark.parametrize(
    ("steps", "keep", "keep_every", "removed"),
    [
        ([], 1, 0, []),
        ([1000], 1, 0, []),
        ([3000, 1000, 2000], 2, 0, [1000]),
        ([1000, 2000, 3000, 4000, 5000], 2, 2000, [1000, 3000]),
        ([1000, 2000, 3000, 4000, 4321], 1, 2000, [1000, 3000]),  # 4321: told to stop there
        ([1000, 2000, 3000], 5, 2000, []),
    ],
)
def test_all_but_the_newest_and_the_multiples_may_go(
    steps: list[int], keep: int, keep_every: int, removed: list[int]
) -> None:
    assert files.superseded(steps, keep, keep_every) == removed


def test_what_stays_does_not_depend_on_when_it_was_asked() -> None:
    """Pruning after each save, after every other one or once at the end leaves the same checkpoints."""
    steps = [300 * n for n in range(1, 12)] + [3456]
    for keep, keep_every in itertools.product((1, 2, 3), (0, 600, 900, 1000)):
        at_each: list[int] = []
        for step in steps:
            at_each.append(step)
            at_each = [s for s in at_each if s not in files.superseded(at_each, keep, keep_every)]
        assert at_each == [s for s in steps if s not in files.superseded(steps, keep, keep_every)]


def test_a_file_is_held_against_its_size_and_sha256(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    content = bytes(range(256)) * 5000  # more than one block of reading
    path.write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert files.flush_and_digest(path) == entry
    assert files.fault(path, entry) == ""

    flipped = bytearray(content)
    flipped[777_777] ^= 1
    path.write_bytes(flipped)
    assert files.fault(path, entry) == f"{path} has another content than was written (sha256)"
    path.write_bytes(content[:-1])
    assert files.fault(path, entry) == f"{path} has {len(content) - 1} bytes, but {len(content)} were written"
    path.unlink()
    assert files.fault(path, entry) == f"{path} is missing"
    path.mkdir()
    assert (
        files.fault(path, entry | {"bytes": path.stat().st_size})
        == f"{path} cannot be read (is a folder, not a regular file; name a file)"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ('{"format": 1, "fil', ""),
        ("[]", "it has no list of files"),
        ("{}", "it has no list of files"),
        ('{"files": 1}', "it has no list of files"),
        ('{"files": {}}', "it lists no file"),
        ('{"files": {"a": {"bytes": 1}}}', ""),
        ('{"format": 2, "files": {"a": {}}}', "its format is '2', and this program reads 1"),
    ],
)
def test_a_marker_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"COMPLETE cannot be understood \\({reason}.*use another checkpoint"):
        files.read_marker(text)


def test_marker_says_what_was_written(tmp_path: Path) -> None:
    directory = tmp_path / files.step_name(7)
    (directory / "generator").mkdir(parents=True)
    (directory / "generator" / "states.pt").write_bytes(b"abc")
    names = files.names_in(directory)
    entries = {name: files.flush_and_digest(directory / name) for name in names}
    assert not files.is_complete(directory)
    files.write_marker(directory, files.marker_text(7, entries))
    text = (directory / "COMPLETE").read_text()
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of abc: FIPS 180-2, appendix B.1
    assert json.loads(text) == {
        "format": 1,
        "step": 7,
        "files": {"generator/states.pt": {"bytes": 3, "sha256": sha256}},
    }
    assert files.read_marker(text) == entries


def test_names_and_renaming(tmp_path: Path) -> None:
    assert files.step_name(12) == "step-00000012"
    assert files.step_of("step-123456789") == 123456789
    for name in ("step-12", "damaged-step-00000012", "step-00000012.partial", "step-0000001x"):
        assert files.step_of(name) is None
    for count in ("damaged-step-00000012", "damaged-step-00000012-2", "damaged-step-00000012-3"):
        (tmp_path / files.step_name(12)).mkdir()
        assert files.set_aside(tmp_path / files.step_name(12), "damaged").name == count
    assert files.steps_in(tmp_path, complete=False) == []

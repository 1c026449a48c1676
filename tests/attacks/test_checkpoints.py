"""Checkpoints of a stranger: markers, files beside them, and states that would run code."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attacks.hostile import Hostile, plant, sign
from tests.trainer.conftest import alone
from tests.trainer.numbers import opened, resumed, save
from trainer.checkpoint.files import fault, flush_and_digest, marker_text, read_marker, read_state, unlisted
from trainer.distributed import Ranks
from trainer.engine import saved_files
from trainer.engine.saved_files import FORBID, FORCE, load_saved, no_code

__all__ = ["alone"]
GOOD = {"bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "text",
    [
        '{"files": {}}',
        '{"files": {"a": {"bytes": 1e999, "sha256": "' + "0" * 64 + '"}}}',
        '{"files": {"a": {"bytes": -1, "sha256": "' + "0" * 64 + '"}}}',
        '{"files": {"a": {"bytes": 1, "sha256": "x"}}}',
        '{"files": {"a": {"bytes": true, "sha256": "' + "0" * 64 + '"}}}',
        '{"files": {"a": 1}}',
        '{"format": 2, "files": {"a": 1}}',
        '{"files": [1]}',
        "[" * 100_000,
        *(json.dumps({"files": {name: GOOD}}) for name in ("../a", "/etc/passwd", "a/../../b", "", "a//b", "COMPLETE")),
        json.dumps({"files": {"a\0b": GOOD}}),
    ],
)
def test_a_marker_that_lies_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="COMPLETE cannot be understood"):
        read_marker(text)


def checkpoint(folder: Path) -> Path:
    """A checkpoint of three files and its marker."""
    (folder / "generator").mkdir(parents=True)
    torch.save({"a": torch.zeros(2)}, folder / "generator" / "mp_rank_00_model_states.pt")
    (folder / "state.json").write_text('{"step": 1}')
    files = {
        path.relative_to(folder).as_posix(): flush_and_digest(path) for path in folder.rglob("*") if path.is_file()
    }
    (folder / "COMPLETE").write_text(marker_text(1, files))
    return folder


def test_what_the_marker_does_not_list_is_damage(tmp_path: Path) -> None:
    """DeepSpeed finds files by patterns, so that it would read one that nobody has checked."""
    place = checkpoint(tmp_path / "step-00000001")
    files = read_marker((place / "COMPLETE").read_text())
    assert unlisted(place, files) == []
    (place / "generator" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")
    (place / "generator" / "more").symlink_to(tmp_path, target_is_directory=True)
    (place / "link.pt").symlink_to("/etc/passwd")
    os.mkfifo(place / "fifo")
    found = unlisted(place, files)
    assert len(found) == 4
    assert all("is not listed in COMPLETE" in line for line in found)


@pytest.mark.timeout(20)
def test_a_listed_file_that_is_none_is_damage(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    (tmp_path / "b.pt").symlink_to("/dev/zero")
    assert "is a FIFO, not a regular file" in fault(tmp_path / "a.pt", GOOD)
    assert "is a link, not a regular file" in fault(tmp_path / "b.pt", GOOD)


def states(mark: Path) -> dict[str, Any]:
    return {
        "a command": {"module": Hostile(mark)},
        "a command in a list": [torch.zeros(1), [[Hostile(mark)]]],
        "a command as a key's neighbour": {"optimizer": {"state": {0: {"exp_avg": Hostile(mark)}}}},
        "a class of the standard library": {"module": pickle.PickleBuffer},
        "a path": Path("/"),
    }


@pytest.mark.parametrize("name", states(Path()))
def test_a_state_with_more_than_tensors_is_damage_in_one_line(name: str, tmp_path: Path) -> None:
    file, mark = tmp_path / "method.pt", tmp_path / "CODE-WAS-RUN"
    torch.save(states(mark)[name], file)
    said = fault(file, flush_and_digest(file))
    assert "nothing in it was run" in said
    assert "\n" not in said
    assert "weights_only=False" not in said
    assert not mark.exists()


def test_a_pickle_that_torch_does_not_follow_is_refused_without_its_advice(tmp_path: Path) -> None:
    """It calls the number 1 with the argument 2. torch names no class then, but how to load the file with code."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"\x80\x02K\x01K\x02\x85R." if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(ValueError, match=r"no state of an engine \(it holds more than tensors and plain values\); no"):
        load_saved(tmp_path / "b.pt")


def test_an_archive_that_grows_is_refused(tmp_path: Path) -> None:
    """torch compresses nothing, so a compressed member is a bomb: 100 kB here, that stand for 100 MB."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, bytes(10**8) if name.endswith("data/0") else old.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 200_000
    with pytest.raises(ValueError, match="is compressed"):
        load_saved(tmp_path / "b.pt")


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_is_compressed_by_its_method_or_by_its_sizes(how: int, tmp_path: Path) -> None:
    """One says that it is stored and has 1 GB in 8 bytes; the other one is deflated, which makes noise no smaller."""
    noise = random.Random(0).randbytes(8)
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            last = name.endswith("data/0")
            new.writestr(name, noise if last else old.read(name), how if last else zipfile.ZIP_STORED)
    if how == zipfile.ZIP_STORED:
        data = bytearray((tmp_path / "b.pt").read_bytes())
        name_at = data.rindex(b"data/0", 0, data.rindex(b"PK\x05\x06"))
        entry = data.rindex(b"PK\x01\x02", 0, name_at)
        data[entry + 24 : entry + 28] = struct.pack("<I", 10**9)  # APPNOTE.TXT 4.3.12: the uncompressed size
        (tmp_path / "b.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"its member 'a/data/0' is compressed"):
        load_saved(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", pickle.dumps({}), b"\x80\x04cos\nsystem\n(S'id'\ntR."])
def test_a_state_that_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt holds no state"):
        load_saved(tmp_path / "a.pt")


def test_whatever_loads_inside_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DeepSpeed loads, with code allowed. Its classes are left out here, so that it need not be imported."""
    monkeypatch.setattr(saved_files, "NAMES", ())
    monkeypatch.setenv(FORBID, "1")
    mark = tmp_path / "CODE-WAS-RUN"
    torch.save({"a": Hostile(mark)}, tmp_path / "a.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "b.pt")
    with no_code():
        assert torch.equal(torch.load(tmp_path / "b.pt", weights_only=False)["a"], torch.ones(2))
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "a.pt", weights_only=False)
    assert not mark.exists()
    assert os.environ[FORBID] == "1"
    assert FORCE not in os.environ


@pytest.mark.parametrize(
    "state",
    [
        {"step": "1", "epoch": 0, "consumed": 0, "order": {}},
        {"step": 1, "epoch": -1, "consumed": 0, "order": {}},
        {"step": 1, "epoch": 0, "consumed": 2**64, "order": {}},
        {"step": 1, "epoch": 0, "consumed": 0, "order": []},
        {"step": 1, "epoch": 0, "consumed": 0, "order": {}, "forked_from": {"step": 1}},
        {"step": 1, "epoch": 0, "consumed": 0, "order": {}, "best": {"step": 1, "term": "val_psnr"}},
        {"step": 1, "epoch": 0, "consumed": 0, "order": {}, "best": {"step": 1, "term": "val_psnr", "value": "high"}},
        {"step": 1},
    ],
)
def test_a_state_json_that_lies_is_refused_by_entry(state: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"state\.json: "):
        read_state(tmp_path)


@pytest.mark.parametrize("target", ["rng-00000.pt", "generator/rank-0.pt"])
def test_a_resume_passes_a_hostile_checkpoint_over(
    target: str, alone: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The marker lists the hostile file with its digest, as whoever planted it would write it."""
    said: list[str] = []
    run, mark = tmp_path / "run", tmp_path / "CODE-WAS-RUN"
    checkpoints = opened(alone, run, (), said.append)
    for step in (10, 20):
        save(checkpoints, step)
    newest = run / "checkpoints" / "step-00000020"
    plant(newest / target, mark)
    sign(newest)
    assert resumed(opened(alone, run, (), said.append)) == 10
    assert not mark.exists()
    assert any("nothing in it was run" in line for line in said)

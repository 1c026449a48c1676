"""An index of latents that is missing or damaged is made anew by the same command, with the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_pipeline.store.local import LocalStore
from tests.trainer.latents.corpus import config_of, contents, encode_here


def test_the_same_command_makes_the_index_anew(
    clips: LocalStore, model: Path, latents: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = LocalStore(shutil.copytree(latents.root, tmp_path / "latents"))
    index = copy.root / "index.arrow"
    damaged = bytearray(index.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    for fault in ("is missing", "has another SHA-256"):
        index.unlink()
        if fault != "is missing":
            index.write_bytes(damaged)
        result = encode_here(config_of(model, clips.root, copy.root))
        assert (result.run.done, result.dataset is not None) == (0, True)
        assert f"{index} {fault}; it is made anew from the commit records of the units\n" in capsys.readouterr().out
        assert contents(copy) == contents(latents)

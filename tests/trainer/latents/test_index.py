"""An index or a plan of latents that is missing or damaged is made anew by the same command, with the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_pipeline.dataset.verify import verify
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


def test_the_same_command_makes_the_plan_anew(
    clips: LocalStore, model: Path, latents: LocalStore, tmp_path: Path
) -> None:
    copy = LocalStore(shutil.copytree(latents.root, tmp_path / "latents"))
    config = config_of(model, clips.root, copy.root)
    copy.write("plan.json", copy.read("plan.json")[:-100])
    for opened in (verify, lambda store: encode_here(config)):
        with pytest.raises(
            ValueError, match=r"plan\.json is damaged: .*or delete it and run the same commands again that"
        ):
            opened(copy)
    copy.delete("plan.json")
    with pytest.raises(ValueError, match=r"is that of a dataset of latents; .* commands of launch/encode_latents\.py"):
        verify(copy)
    assert encode_here(config).run.done == 0
    assert contents(copy) == contents(latents)
    empty = LocalStore(tmp_path)
    with pytest.raises(ValueError, match=r"no plan\.json: it is not a dataset of .* or launch/encode_text\.py"):
        verify(empty)

"""launch/verify_shards.py on a dataset of real videos, whole and with a single bit that is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_pipeline.dataset.config import LatentDtype
from launch import verify_shards
from tests.data_pipeline.latents_dataset import make_clips, settings_of, write_latents
from tests.launch.dataset_files import content


def test_a_whole_dataset_is_proven_and_stays_as_it_is(real_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(real_shards)
    for place in (str(real_shards), f"file://{real_shards}"):
        assert verify_shards.main(["--shards", place]) == 0
        assert "proven: 3 units, 3 shards, every source row accounted for exactly once" in capsys.readouterr().out
    assert content(real_shards) == before


def test_verification_fails_with_the_damage(
    real_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(real_shards, copy)
    shard = min(copy.glob("shards/*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    assert verify_shards.main(["--shards", str(copy)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert any(f"{shard.name} is not what was committed" in line for line in said)
    count = len(said) - 1
    noun = "problem" if count == 1 else "problems"
    assert said[-1] == f"launch/verify_shards.py: {count} {noun} in 3 units"
    assert verify_shards.main(["--shards", str(copy), "--quick"]) == 0, "sizes alone do not show it"
    assert verify_shards.main(["--shards", str(tmp_path)]) == 2


def test_a_source_that_cannot_be_one_is_refused_before_anything_is_verified(
    real_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.dataset.verify.verify", lambda *_, **__: pytest.fail("it was verified"))
    assert verify_shards.main(["--shards", str(real_shards), "--source", str(real_shards)]) == 2
    assert "is a dataset of clips, which are made of no other dataset; leave --source out" in capsys.readouterr().err
    latents = tmp_path / "latents"
    write_latents(latents, [make_clips(1)], settings_of(LatentDtype.fp16))
    assert verify_shards.main(["--shards", str(latents), "--source", str(tmp_path / "nowhere")]) == 2
    assert f"--source {tmp_path / 'nowhere'}: no dataset.json there" in capsys.readouterr().err
    assert verify_shards.main(["--shards", str(latents), "--source", str(latents)]) == 2
    assert "is a dataset of latents; give one of clips" in capsys.readouterr().err

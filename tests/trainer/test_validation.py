"""Validation passes in the course of a run of the toy method (see toy.py); test_two_ranks.py has those of ranks."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.lpips import LPIPS
from tests.data_pipeline.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.toy import logged, losses, rows, toy
from trainer.config import TrainConfig
from trainer.run import Refused, run
from trainer.validation import ValidationConfig


@pytest.fixture
def held_out(tmp_path: Path) -> str:
    clips = make_clips(11, frames=(9, 12)) + make_clips(3, frames=(9, 17), split="val")
    return str(write_dataset(tmp_path / "with val", split_into_shards(clips, [4])))


def test_validation_changes_nothing_but_what_is_written(config: TrainConfig, held_out: str, tmp_path: Path) -> None:
    config = replace(config, data=replace(config.data, shards=held_out))
    run(config, toy())
    LPIPS().save(tmp_path / "lpips.safetensors")  # of random weights, as good as any here
    other = replace(config, output=str(tmp_path / "validated"), validation=ValidationConfig(every=3, clips=100))
    other.loss = replace(config.loss, lpips_weights=str(tmp_path / "lpips.safetensors"))
    run(other, toy())
    assert logged(other) == losses(config)
    found = [row for row in rows(other) if row.get("event") == "validation"]
    assert [(row["step"], row["val_windows"], row["val_unreadable"]) for row in found] == [(n, 4, 0) for n in (3, 6, 9)]
    assert all(0 < row["val_psnr"] < 20 and row["val_ssim"] < 1 and row["val_lpips"] != 0 for row in found)


def test_validation_without_held_out_clips_is_refused(config: TrainConfig) -> None:
    config.validation = ValidationConfig(every=3)
    with pytest.raises(Refused, match=r"validation\.every=3 wants clips of the split 'val': .*set validation\.every=0"):
        run(config, toy())
    assert not Path(config.output).exists()

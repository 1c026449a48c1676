"""What the data of a training of a DiT refuses, in one process; tests/launch/test_train_diffusion.py has more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.data_pipeline.latents_dataset import make_clips, write_latents
from tests.trainer.diffusion.cases import tiny_config
from trainer.diffusion.stored_latents import StoredLatents
from trainer.distributed import Ranks


def test_a_held_out_sample_without_a_label_is_refused_by_its_key(tmp_path: Path) -> None:
    held_out = [replace(clip, label="") for clip in make_clips(2, split="val")]
    write_latents(tmp_path, [make_clips(6), held_out])
    words = [f"data.shards={tmp_path}", "data.workers=0", "dit.condition=class", "validation.every=2"]
    message = rf"data\.shards={tmp_path}: the held-out sample val-\S+ has no label, and dit\.condition=class needs one"
    with pytest.raises(ValueError, match=message):
        StoredLatents(tiny_config("unused", *words), Ranks(0, 1, 0, torch.device("cpu"), None))

"""What the data of a training of a DiT refuses, in one process; tests/launch/test_train_diffusion.py has more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_pipeline.read.latent_dataset import LatentDataset
from tests.data_pipeline.latents_dataset import make_clips, settings_of, write_latents
from tests.trainer.diffusion.cases import tiny_config
from trainer.diffusion.stored_latents import LatentBatch, StoredLatents
from trainer.distributed import Ranks


def test_a_held_out_sample_without_a_label_is_refused_by_its_key(tmp_path: Path) -> None:
    held_out = [replace(clip, label="") for clip in make_clips(2, split="val")]
    write_latents(tmp_path, [make_clips(6), held_out])
    words = [f"data.shards={tmp_path}", "data.workers=0", "dit.condition=class", "validation.every=2"]
    message = rf"data\.shards={tmp_path}: the held-out sample val-\S+ has no label, and dit\.condition=class needs one"
    with pytest.raises(ValueError, match=message):
        StoredLatents(tiny_config("unused", *words), Ranks(0, 1, 0, torch.device("cpu"), None))


def held_out_of(place: Path, rank: int, ranks: int, clips: int) -> tuple[list[str], int]:
    """The keys that a rank measures, and how many all ranks measure."""
    words = [f"data.shards={place}", "data.workers=0", "data.global_batch=6", f"validation.clips={clips}"]
    config = tiny_config("unused", *words, "dit.condition=none", "validation.every=2")
    data = StoredLatents(config, Ranks(rank, ranks, 0, torch.device("cpu"), None))
    batches = [batch for batch in data.held_out if isinstance(batch, LatentBatch)]
    return [key for batch in batches for key in batch.keys], data.held_out_clips


def test_the_ranks_measure_together_what_one_measures_spread_evenly_over_the_split(tmp_path: Path) -> None:
    """Of seven clips five are taken: those at 0, 7/5, 14/5, 21/5 and 28/5, rounded down; each by one rank.

    Each has a mirrored twin, which would be the same clip once more.
    """
    held_out = [replace(clip, windows=1) for clip in make_clips(7, split="val")]
    write_latents(tmp_path, [make_clips(6), held_out], settings_of(mirrored=True))
    dataset = LatentDataset(str(tmp_path), "val", mirrored=False)
    assert len(LatentDataset(str(tmp_path), "val")) == 14
    assert len(dataset) == 7
    wanted = [dataset.keys[number] for number in (0, 1, 2, 4, 5)]
    for ranks in (1, 2, 3, 6):
        shares = [held_out_of(tmp_path, rank, ranks, 5) for rank in range(ranks)]
        assert [key for keys, _ in shares for key in keys] == wanted
        assert {total for _, total in shares} == {5}
    assert held_out_of(tmp_path, 0, 1, 99) == (dataset.keys, 7)

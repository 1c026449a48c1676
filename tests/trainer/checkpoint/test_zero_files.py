"""Files as DeepSpeed divides them at ZeRO 3, written here for more ranks than a test can start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.checkpoint.zero_files import SavedEngine

RANKS, ELEMENTS = 12, 34
PART = 3
"""ceil(34 / 12) elements are each rank's; the last rank has one, and two numbers that fill its part up."""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Element k of the weight is k, of the first moment -k, and of the second k + 100."""
    first = {
        "ds_config": {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 2},
        "dp_world_size": RANKS,
        "global_steps": 5,
        "global_samples": 120,
        "skipped_steps": 1,
        "module": {},
        "buffer_names": [],
        "param_shapes": [{"weight": torch.Size((2, ELEMENTS // 2))}],
    }
    torch.save(first, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    for rank in range(RANKS):
        values = torch.arange(PART * rank, PART * (rank + 1), dtype=torch.float32)
        moments = {"step": torch.tensor(4.0), "exp_avg": -values, "exp_avg_sq": values + 100}
        state = {"fp32_flat_groups": [values], "optimizer_state_dict": {"state": {0: moments}}}
        file = tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state}, file)
    return tmp_path


def test_ten_ranks_and_more_are_read_in_the_order_of_their_numbers(saved: Path) -> None:
    engine = SavedEngine(saved)
    exact = torch.arange(ELEMENTS, dtype=torch.float32).reshape(2, -1)
    assert torch.equal(engine.whole("weight", "weight"), exact)
    assert torch.equal(engine.whole("exp_avg", "weight"), -exact)
    assert torch.equal(engine.whole("exp_avg_sq", "weight"), exact + 100)
    assert engine.read("weight", "weight", 28, 5).tolist() == [28, 29, 30, 31, 32]  # of the ranks 9 and 10
    assert engine.steps == 4


@pytest.mark.parametrize("rank", [0, 2, RANKS - 1])
def test_a_rank_whose_file_is_missing_is_noticed(saved: Path, rank: int) -> None:
    (saved / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(ValueError, match=r"holds 11 of 12 \*_optim_states\.pt files; it is no complete checkpoint"):
        SavedEngine(saved).whole("weight", "weight")


def test_a_file_of_a_rank_that_there_is_not_does_not_stand_for_one_that_is_missing(saved: Path) -> None:
    (saved / "zero_pp_rank_2_mp_rank_00_optim_states.pt").rename(saved / "zero_pp_rank_12_mp_rank_00_optim_states.pt")
    with pytest.raises(ValueError, match=r"holds 12 of 12 \*_optim_states\.pt files; it is no complete checkpoint"):
        SavedEngine(saved).whole("weight", "weight")

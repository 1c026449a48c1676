"""The moving average of tensors against its closed form; test_two_ranks.py has it at every ZeRO stage."""

from pathlib import Path

import pytest
import torch

from trainer.engine.ema import Ema

DECAY = 0.9


def test_after_n_updates_it_is_the_weighted_sum_of_all_that_was() -> None:
    """average = decay**n x first + sum of (1 - decay) x decay**(n - k) x k-th."""
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    first, average = weight.clone(), Ema([weight])
    changes = [torch.tensor([k, k**2], dtype=torch.float64) for k in range(1, 6)]
    for value in changes:
        weight.copy_(value)
        average.update(DECAY)
    wanted = DECAY**5 * first + sum((1 - DECAY) * DECAY ** (5 - k) * value for k, value in enumerate(changes, start=1))
    torch.testing.assert_close(average.averages[0], wanted)
    with average.applied():
        assert torch.equal(weight, average.averages[0])
    assert torch.equal(weight, changes[-1])
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert torch.equal(weight, changes[-1])


def test_saved_and_read_or_begun_anew(tmp_path: Path) -> None:
    weight = torch.tensor([1.0, 2.0])
    average = Ema([weight])
    weight += 1
    average.update(DECAY)
    kept = average.averages[0].clone()
    average.save(tmp_path / "ema.pt")
    weight += 5
    average.update(DECAY)
    average.load(tmp_path / "ema.pt")
    assert torch.equal(average.averages[0], kept)
    average.load(tmp_path / "there is none")  # the average was off when this was saved
    assert torch.equal(average.averages[0], weight)
    weight += 1
    assert not torch.equal(average.averages[0], weight)  # a copy, not the weights themselves
    with pytest.raises(ValueError, match=r"ema\.pt is the average of other shards"):
        Ema([torch.zeros(3)]).load(tmp_path / "ema.pt")

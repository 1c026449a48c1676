"""What a window makes of the steps between two log steps, against sums done by hand."""

import math

import pytest
import torch

from trainer.telemetry.running_means import RunningMeans


def terms(value: float, skipped: float = 0.0) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(value), "skipped": torch.tensor(skipped)}


def fill(window: RunningMeans, skipped: list[int]) -> None:
    for bad in skipped:
        window.add(terms(math.nan if bad else 5.0, float(bad)))


@pytest.mark.parametrize(
    ("skipped", "total", "in_a_row"),
    [([0, 0], 0, 0), ([1, 1], 2, 2), ([1, 0], 1, 0), ([1, 1, 0, 1], 3, 1), ([0, 1, 1], 2, 2)],
)
def test_skipped_steps_are_in_a_row_only_up_to_the_last_one_that_was_not(
    skipped: list[int], total: int, in_a_row: int
) -> None:
    window = RunningMeans(torch.device("cpu"))
    fill(window, skipped)
    reading = window.read(ranks=1)
    assert (reading.skipped, reading.in_a_row) == (total, in_a_row)


def test_a_row_goes_on_over_a_log_step_and_ends_where_the_run_is_set_back() -> None:
    window = RunningMeans(torch.device("cpu"))
    fill(window, [0, 1])
    assert window.read(ranks=1)[1:] == (1, 1)
    fill(window, [1])
    assert window.read(ranks=1)[1:] == (1, 2)  # one since the last reading, two in a row
    fill(window, [1])
    window.clear()
    fill(window, [0])
    window.add(terms(7.0))
    means, *counts = window.read(ranks=1)
    assert means == {"loss": 6.0}
    assert counts == [0, 0]
    fill(window, [1])
    window.clear()
    fill(window, [1])
    assert window.read(ranks=1)[1:] == (1, 1)


def test_what_is_not_finite_is_no_part_of_a_mean_and_is_told_by_term() -> None:
    window = RunningMeans(torch.device("cpu"))
    found = [window.add(terms(value) | {"other": torch.tensor(1.0)}) for value in (2.0, math.inf, 4.0)]
    assert [bool(finite["loss"]) for finite in found] == [True, False, True]
    assert all(finite.keys() == {"loss", "other"} for finite in found)
    window.add({"loss": torch.tensor(9.0), "skipped": torch.zeros(())})  # a term may be missing in a step
    assert window.read(ranks=1).means == {"loss": 5.0, "other": 1.0}
    window.add(terms(math.nan))
    assert math.isnan(window.read(ranks=1).means["loss"])


def test_many_small_values_keep_their_digits() -> None:
    """A sum in float32 would lose them: next to 2**24 it has steps of 2."""
    window = RunningMeans(torch.device("cpu"))
    for value in (2.0**24, 1.0, 1.0, 1.0):
        window.add(terms(value))
    assert window.read(ranks=1).means == {"loss": (2**24 + 3) / 4}

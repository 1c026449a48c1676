"""Want of memory, as torch and Python say it, becomes a refusal that names the setting."""

from __future__ import annotations

import pytest
import torch

from trainer.engine.want_of_memory import batch_in_memory

BATCH = "--batch 4"


def raised(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "CUDA out .* 2.00 GiB."),
        (MemoryError(), "the machine has no more"),
    ],
)
def test_want_of_memory_names_the_setting(error: BaseException, said: str) -> None:
    message = rf"^--batch 4 needs more memory than there is \({said}\); give a smaller number"
    with pytest.raises(ValueError, match=message), batch_in_memory(BATCH):
        raised(error)


def test_want_of_memory_of_a_processor_is_told_from_other_errors() -> None:
    """No address space has 2**62 bytes."""
    message = r"allocate memory: you tried to allocate \d+ bytes.*; name another device$"
    with pytest.raises(ValueError, match=message), batch_in_memory(BATCH, "name another device"):
        torch.empty(2**62, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), batch_in_memory(BATCH):
        torch.zeros(1, 2) @ torch.zeros(1, 2)

"""Want of memory where the number of things that are computed together can be set: a refusal with that setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def batch_in_memory(
    setting: str, remedy: str = "give a smaller number, or a device with more memory"
) -> Iterator[None]:
    """Inside, want of memory of a GPU or of this machine is a ValueError.

    Args:
        setting: what decides how much is computed together, with its value, such as `--batch 4`.
        remedy: what a user can do about it.
    Raises:
        ValueError: with the setting, the first line of the error, and the remedy.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On the processor, torch raises a RuntimeError that only its text tells from others.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        said = (str(error).strip().splitlines() or ["the machine has no more"])[0]
        raise ValueError(f"{setting} needs more memory than there is ({said}); {remedy}") from error

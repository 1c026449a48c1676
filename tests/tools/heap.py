"""What a process finds in memory that it has just been given: a chosen value."""

from __future__ import annotations

import numpy as np


def leave_in_memory(value: int, shift: int = 0) -> None:
    """Fill some 10 MB of the heap with one byte value and give them back, so that whoever asks next finds the value.

    Args:
        value: 0 to 255.
        shift: bytes by which the blocks are larger than powers of two, so that the blocks given out next lie elsewhere.
    """
    blocks = [np.full(2**power + shift, value, np.uint8) for _ in range(20) for power in range(8, 18)]
    del blocks

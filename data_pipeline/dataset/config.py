"""Choices that a dataset's plan records; a leaf, so that settings load nothing that computes."""

from __future__ import annotations

from enum import StrEnum

MAX_DISTANCE = 7
"""Bits in which near-duplicates may differ. Beyond it the search would compare nearly everything with everything."""


class Duplicates(StrEnum):
    """What to do with a row whose id was seen before."""

    ERROR = "error"
    MERGE = "merge"


class LatentDtype(StrEnum):
    """The type that latents are stored in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"

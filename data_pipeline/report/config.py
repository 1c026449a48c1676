"""How much of a dataset its page shows: a leaf, so that a command line is read without loading what computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SurveyConfig:
    """How many clips and rows are drawn at random."""

    clips: int = 2000  # clips whose descriptions are read for motion, source fps and source size
    pictures: int = 36  # accepted clips that are shown
    examples: int = 6  # rows or stretches shown for each reason
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.clips, self.pictures, self.examples) < 0 or self.pictures > self.clips:
            raise ValueError(
                f"clips={self.clips}, pictures={self.pictures}, examples={self.examples} must not be negative, and "
                "pictures are drawn from the clips: lower --pictures or raise --clips"
            )

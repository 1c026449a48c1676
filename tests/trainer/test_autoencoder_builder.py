"""A discriminator that normalises by the statistics of one clip is named at the start."""

from pathlib import Path

import pytest

from tests.trainer.cases import tiny_config, tiny_recipe
from trainer.autoencoder_builder import statistics_of_one_clip


@pytest.mark.parametrize(
    ("ranks", "norm", "words", "named"),
    [
        (4, "batch", (), True),
        (1, "batch", (), False),
        (1, "batch", ("accumulation=4",), True),
        (2, "batch", ("micro_batch=2",), False),
        (4, "group", (), False),
        (4, "batch", ("gan.weight=0",), False),
    ],
)
def test_a_micro_batch_of_one_clip(tmp_path: Path, ranks: int, norm: str, words: tuple[str, ...], named: bool) -> None:
    recipe = tiny_recipe()
    recipe.discriminator.norm = norm
    assert statistics_of_one_clip(tiny_config(str(tmp_path), *words, recipe=recipe), ranks) is named

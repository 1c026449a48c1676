"""launch/export.py against what the run itself exported from its live engines, and what it refuses."""

from pathlib import Path

import pytest

from tests.trainer.checkpoint.resharded import CHAIN
from trainer.checkpoint.export import Weights, export

ROOT = Path(__file__).parents[3]
LAST = max(CHAIN)


@pytest.mark.parametrize("step", CHAIN)
@pytest.mark.parametrize("weights", Weights)
def test_any_checkpoint_gives_what_its_live_engines_exported(
    chained: Path, tmp_path: Path, step: int, weights: Weights
) -> None:
    """Parts of 1, 2 and 3 ranks at ZeRO 0 to 3: the same files, byte for byte."""
    export(str(chained / "run"), tmp_path / "model", step, weights)
    live = chained / f"{'model_ema' if weights is Weights.ema else 'model'}-{step}"
    names = sorted(file.name for file in live.iterdir())
    assert names == ["config.yaml", "discriminator.safetensors", "logvar.safetensors", "model.safetensors"]
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == names
    for name in names:
        assert (tmp_path / "model" / name).read_bytes() == (live / name).read_bytes(), name

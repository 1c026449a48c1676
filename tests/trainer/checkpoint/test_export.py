"""launch/export.py against what the run itself exported from its live engines, and what it refuses."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from model.provenance import Weights
from tests.trainer.checkpoint.resharded import CHAIN
from trainer.checkpoint.export import export

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
    weight_files = ["discriminator.safetensors", "logvar.safetensors", "model.safetensors"]
    assert names == ["README.md", "config.yaml", *weight_files[:2], "model.safetensors", "provenance.json"]
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == names
    for name in names:
        assert (tmp_path / "model" / name).read_bytes() == (live / name).read_bytes(), name
    said = json.loads((live / "provenance.json").read_text())
    assert (said["step"], said["weights"], said["settings"]["steps"]) == (step, weights.value, step)
    assert said["settings"]["zero.stage"] == CHAIN[step][1]
    assert said["data"]["index"] == hashlib.sha256((chained / "data" / "index.arrow").read_bytes()).hexdigest()
    assert re.fullmatch("[0-9a-f]{64}", said["program"])
    for name in weight_files:
        with safe_open(live / name, framework="pt") as file:
            assert {key: json.loads(text) for key, text in file.metadata().items()} == {"provenance": said}

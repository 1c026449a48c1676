"""The presets of configs/model: sizes, rates and operations, against the paper and the released checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from model.config import VidTwinConfig
from model.vidtwin import VidTwin
from tests.model.official_weights import GOLDEN
from tests.model.tiny_vidtwin import WithModel
from trainer.config.loader import load_config

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


@pytest.mark.parametrize(
    ("preset", "millions", "rate"),
    [("small", 106.1, 0.205), ("base", 311.5, 0.205), ("large", 1237.3, 0.205), ("released", 311.5, 0.335)],
)
def test_presets(preset: str, millions: float, rate: float) -> None:
    """Rates as the paper and the released file name state them; sizes worked out from the layer list below."""
    config = load_config(WithModel, [CONFIGS / f"{preset}.yaml"]).model
    with torch.device("meta"):
        model = VidTwin(config)
    assert round(100 * config.compression_rate, 3) == rate
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    c = config.width
    # a block: two attentions (qkv, out), an MLP of ratio 4, six rows of modulation
    block = 2 * (3 * c * (c + 1) + c * (c + 1)) + (4 * c * (c + 1) + c * (4 * c + 1)) + 6 * c
    assert model.flops_per_clip() == 6 * 2 * config.depth * block * 16 * 14 * 14


def test_released_preset_has_exactly_the_released_parameters() -> None:
    """Counted from the released checkpoint's own list, without its layers that are never called."""
    listed = json.loads((GOLDEN / "official_base_keys.json").read_text())
    unused = ("encoder.final_layer.", "decoder.x_embedder.", "loss.")
    sizes = [
        torch.Size(shape).numel()
        for name, (shape, _) in listed.items()
        if not name.startswith(unused) and "pos_embed" not in name
    ]
    with torch.device("meta"):
        model = VidTwin(load_config(WithModel, [CONFIGS / "released.yaml"]).model)
    assert sum(p.numel() for p in model.parameters()) == sum(sizes)
    assert len(list(model.parameters())) == len(sizes)


@pytest.mark.parametrize(
    ("queries", "h_s", "d_s", "h_d", "d_d", "rate"),
    [(16, 7, 4, 7, 8, 0.205), (16, 7, 4, 4, 16, 0.215), (12, 7, 4, 7, 8, 0.172)],
)
def test_recommended_latents(queries: int, h_s: int, d_s: int, h_d: int, d_d: int, rate: float) -> None:
    """The three settings docs/model.md recommends, from the paper's ablation."""
    halvings = {7: 1, 4: 2}
    words = [
        *(f"structure.queries={queries}", f"structure.channels={d_s}", f"structure.downsamplings={halvings[h_s]}"),
        *(f"dynamics.channels={d_d}", f"dynamics.downsamplings={halvings[h_d]}"),
    ]
    config = load_config(VidTwinConfig, overrides=words)
    assert config.structure_shape == (d_s, queries, h_s, h_s)
    assert config.dynamics_shape == (d_d, 16, 2 * h_d)
    assert round(100 * config.compression_rate, 3) == rate

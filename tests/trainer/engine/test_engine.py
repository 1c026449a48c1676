"""A network in its engine, without DeepSpeed, which only the plain one of fp32 at ZeRO 0 can do without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.config.learning import Decay, OptimizerConfig, Precision, SharedOptimConfig, ZeroConfig
from trainer.engine.engine import Engine
from trainer.engine.engine_settings import EngineSettings


def plain(module: nn.Module, decay: Decay, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engine of a module; what stands in for DeepSpeed's holds the module and does nothing."""

    def initialized(self: Engine, module: nn.Module, *rest: Any) -> Any:
        return SimpleNamespace(module=module, device=torch.device("cpu"), fp16_enabled=lambda: False)

    monkeypatch.setattr(Engine, "_initialized", initialized)
    settings = EngineSettings(
        stage=0,
        precision=Precision.fp32,
        optimizer=OptimizerConfig(),
        optim=SharedOptimConfig(decay=decay),
        zero=ZeroConfig(),
        micro_batch=1,
        accumulation=1,
        ranks=1,
    )
    return Engine("net", module, settings)


@pytest.mark.parametrize("decay", list(Decay))
def test_masters_lie_where_places_says_also_where_only_matrices_decay(
    monkeypatch: pytest.MonkeyPatch, decay: Decay
) -> None:
    """With two groups the optimizer's order is not the module's: the bias and the norm come last."""
    module = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2), nn.Linear(2, 2))
    engine = plain(module, decay, monkeypatch)
    masters, places = engine.masters(), engine.places()
    weights = dict(module.named_parameters())
    assert {name: id(masters[place.flat]) for name, place in places.items()} == {
        name: id(weight) for name, weight in weights.items()
    }
    saved = {name: torch.randn(weight.numel()) for name, weight in weights.items()}

    def read(name: str, start: int, count: int) -> Tensor:
        return saved[name][start : start + count]

    engine.fill(masters, read)
    for name, weight in weights.items():
        assert torch.equal(weight.detach().flatten(), saved[name]), name

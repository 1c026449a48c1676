"""One rank that looks at the private parts of DeepSpeed which `deepspeed_private.py` uses, for its test.

python -m tests.trainer.engine.private_parts FILE
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer import distributed
from trainer.config.learning import OptimConfig, OptimizerConfig, Precision, ZeroConfig
from trainer.engine import deepspeed_private
from trainer.engine.engine import Engine
from trainer.engine.engine_settings import EngineSettings


def engine_of(stage: int, precision: Precision) -> Engine:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    settings = EngineSettings(
        stage=stage,
        precision=precision,
        optimizer=OptimizerConfig(),
        optim=OptimConfig(),
        zero=ZeroConfig(stage=stage, persistence_threshold=12),  # small weights stay whole, and one does not
        micro_batch=1,
        accumulation=1,
        ranks=1,
    )
    return Engine("network", module, settings)


def learn(engine: Engine, dtype: torch.dtype) -> None:
    engine.backward(engine(torch.ones(1, 3, dtype=dtype)).float().square().sum())
    engine.step(0.1)


def look(stage: int, precision: Precision) -> dict[str, Any]:
    """What is found after a step, and after the masters were set from outside."""
    dtype = torch.float32 if precision is Precision.fp32 else torch.bfloat16
    engine = engine_of(stage, precision)
    learn(engine, dtype)
    with engine.whole() as module:
        weights = {name: weight.detach().float().clone() for name, weight in module.named_parameters()}
        shapes = {name: deepspeed_private.whole_shape(weight) for name, weight in module.named_parameters()}
    inner = engine.engine
    masters = deepspeed_private.masters(inner, stage)
    if stage == 0:
        pairs = deepspeed_private.weights_and_masters(inner)
        near = all(torch.equal(master.to(weight.dtype), weight) for weight, master in pairs)
    else:
        near = True
        for name, place in deepspeed_private.places(inner, stage, engine.module.named_parameters()):
            part = masters[place.flat].detach().view(-1)[place.offset : place.offset + place.length]
            own = weights[name].flatten()[place.start : place.start + place.length]
            near = near and len(own) == weights[name].numel() and torch.equal(part.to(dtype).float(), own)
    deepspeed_private.begin_setting_masters(inner, stage)
    for master in masters:
        master.detach().fill_(0.5)
    deepspeed_private.update_working_weights(inner, stage)
    with engine.whole() as module:
        published = all(bool((weight == 0.5).all()) for weight in module.parameters())
    state = deepspeed_private.clear_moments(inner, stage)
    forgotten = len(state) == 0
    deepspeed_private.set_counters(inner, {"global_steps": 7})
    learn(engine, dtype)
    counts = {float(entry["step"]) for entry in inner.basic_optimizer.state.values()}
    return {
        "shapes": shapes == {name: tuple(weight.shape) for name, weight in weights.items()},
        "masters are the weights": near,
        "published": published,
        "forgotten": forgotten,
        "counts": sorted(counts),
        "steps": inner.global_steps,
    }


def scales() -> list[list[float]]:
    """fp16's loss scale and its lowest value, at ZeRO 0 and 1."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    found = []
    for stage in (0, 1):
        engine = engine_of(stage, Precision.fp16)
        scaler = deepspeed_private.scaler(engine.engine, stage)
        scaler.cur_scale = 2.0**-15
        for _ in range(3):
            engine.backward(engine(torch.full((1, 3), torch.inf, dtype=torch.float16)).float().sum())
            engine.step(0.1)
        found.append([scaler.cur_scale, float(engine.engine.was_step_applied())])
    return found


def main() -> None:
    distributed.start(2)
    import deepspeed
    from deepspeed.comm.torch import build_shm_op

    cases = [(0, Precision.bf16), *((stage, Precision.fp32) for stage in (1, 2, 3)), (3, Precision.bf16)]
    found = {f"{stage} {precision.value}": look(stage, precision) for stage, precision in cases}
    extension = build_shm_op() is None and deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False
    Path(sys.argv[1]).write_text(json.dumps({"cases": found, "scales": scales(), "no extension": extension}))
    distributed.stop()


if __name__ == "__main__":
    main()

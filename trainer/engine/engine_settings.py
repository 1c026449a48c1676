"""How a network is trained, and the same as DeepSpeed's configuration of the network's engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config.learning import OptimizerConfig, Precision, SharedOptimConfig, ZeroConfig

# In fp16 the loss is multiplied by 2**8 at first. The loss is a sum over the pixels of a frame, so its gradients are
# large: with 224 x 224 pixels the gradient of logvar fits into fp16 only with a scale below 1, where DeepSpeed would
# end the run.
INITIAL_SCALE_POWER = 8


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a network is trained.

    Attributes:
        stage: ZeRO stage.
        optimizer: the network's own optimizer.
        optim: what the optimizers of all networks share.
        micro_batch, accumulation, ranks: how a global batch is divided.
        gathered_whole: kinds of modules whose weights ZeRO 3 gathers all at once, and not part by part; a compiler can
            take such a module as one graph only then, and the host calls DeepSpeed's hooks less often.
    """

    stage: int
    precision: Precision
    optimizer: OptimizerConfig
    optim: SharedOptimConfig
    zero: ZeroConfig
    micro_batch: int
    accumulation: int
    ranks: int
    gathered_whole: tuple[type[nn.Module], ...] = ()


def engine_config(settings: EngineSettings, clip: float, elements: int) -> dict[str, Any]:
    """DeepSpeed's configuration of one engine.

    Args:
        settings: how the network is trained.
        clip: largest L2 norm of the gradient; 0 = DeepSpeed does not clip.
        elements: of all weights that learn; a larger buffer for averaging gradients would be allocated and not used.
    """
    zero, precision = settings.zero, settings.precision
    stage_config: dict[str, Any] = {"stage": settings.stage}
    if settings.stage > 0:
        stage_config["reduce_bucket_size"] = min(zero.bucket, elements)
    if settings.stage in (1, 2):
        stage_config["overlap_comm"] = zero.overlap_comm
    if settings.stage == 3:
        stage_config["stage3_param_persistence_threshold"] = zero.persistence_threshold
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if zero.offload_optimizer:
        stage_config["offload_optimizer"] = host
    if zero.offload_parameters:
        stage_config["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.accumulation,
        "train_batch_size": settings.micro_batch * settings.accumulation * settings.ranks,
        "gradient_clipping": clip,
        "zero_optimization": stage_config,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision is Precision.bf16},
        "fp16": {"enabled": precision is Precision.fp16, "initial_scale_power": INITIAL_SCALE_POWER},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        # DeepSpeed's throughput timer would synchronise the device twice a micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }

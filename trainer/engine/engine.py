"""A network in a DeepSpeed engine: built, stepped, saved, gathered.

Measured with DeepSpeed 0.19.8 and torch 2.13: a parameter without dimensions breaks ZeRO; a step with a non-finite
gradient is skipped at ZeRO 1-3 and in 16-bit, but not at ZeRO 0 in fp32, so that `GuardedAdamW` does it there, on the
device; the gradient norm at ZeRO 0 in fp32 comes from the same place; fp16 at ZeRO 0 divides gradients by a loss scale
that nothing was multiplied by.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.learning import OptimConfig, OptimizerConfig, Precision, ZeroConfig
from trainer.engine.gradient_watch import Gradients, GradientWatch
from trainer.engine.optimizer import Guard, build_optimizer

# fp16's loss is multiplied by 2**8 at first. The loss is a sum over the pixels of a frame, so its gradients are large:
# with 224 x 224 pixels that of logvar alone fits into fp16 below a scale of 1, where DeepSpeed would end the run.
INITIAL_SCALE_POWER = 8
LOWEST_SCALE = 2.0**-16


def engine_config(
    *, micro_batch: int, accumulation: int, ranks: int, stage: int, precision: Precision, clip: float, zero: ZeroConfig
) -> dict[str, Any]:
    """DeepSpeed's configuration of one engine."""
    stage_config: dict[str, Any] = {"stage": stage}
    if stage > 0:
        stage_config["reduce_bucket_size"] = zero.bucket
    if stage == 3:
        stage_config["stage3_param_persistence_threshold"] = zero.persistence_threshold
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if zero.offload_optimizer:
        stage_config["offload_optimizer"] = host
    if zero.offload_parameters:
        stage_config["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * ranks,
        "gradient_clipping": clip,
        "zero_optimization": stage_config,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision is Precision.bf16},
        "fp16": {"enabled": precision is Precision.fp16, "initial_scale_power": INITIAL_SCALE_POWER},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


class Engine:
    """One DeepSpeed engine and what a training step wants from it.

    Args:
        name: its folder in a checkpoint.
        module: every parameter has at least one dimension.
        stage: ZeRO stage.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        stage: int,
        precision: Precision,
        optimizer: OptimizerConfig,
        optim: OptimConfig,
        zero: ZeroConfig,
        micro_batch: int,
        accumulation: int,
        ranks: int,
    ) -> None:
        import deepspeed

        assert all(parameter.dim() > 0 for parameter in module.parameters())
        self.name = name
        self.stage = stage
        self.plain = stage == 0 and precision is Precision.fp32
        self.guard = Guard(optim.clip) if self.plain else None
        # What does not learn has no master, and 16-bit engines round it: the exact values are kept here.
        self.frozen = {
            name: parameter.detach().cpu().clone()
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad
        }
        learning = _learning(module)
        bucket = min(zero.bucket, sum(parameter.numel() for parameter in learning))  # more would be allocated, not used
        built = build_optimizer(learning, optimizer, self.guard)
        self._settings = {name: value for name, value in built.defaults.items() if name != "lr"}
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=built,
            config=engine_config(
                micro_batch=micro_batch,
                accumulation=accumulation,
                ranks=ranks,
                stage=stage,
                precision=precision,
                clip=0.0 if self.plain else optim.clip,
                zero=replace(zero, bucket=bucket),
            ),
            dist_init_required=False,
        )
        self.module: nn.Module = self.engine.module
        self.watch = GradientWatch(self.module)
        self.always_watched = optim.max_skipped == 1  # there will be no second skipped step to look at
        self.watch.switch(self.always_watched and not self.plain)
        self._names = {id(weight): name for name, weight in self.module.named_parameters()}
        if stage == 0 and not self.plain:
            # DeepSpeed's 16-bit wrapper has stepped on zero gradients, which aged Adam's bias correction by one step.
            self.engine.basic_optimizer.state.clear()
        if precision is Precision.fp16:
            scaler = self.scaler()
            scaler.min_loss_scale = scaler.min_scale = LOWEST_SCALE  # the name at ZeRO 0, and at the other stages
            scaler.raise_error_at_min_scale = False  # optim.max_skipped ends such a run, and says what was not finite
        self.scale_used = self.loss_scale

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's loss; DeepSpeed divides by accumulation and averages over ranks."""
        self.scale_used = self.loss_scale
        if self.stage == 0 and self.scale_used is not None:
            loss = loss * self.scale_used  # DeepSpeed divides by the scale in `step`, but forgets to multiply here
        self.engine.backward(loss)

    @property
    def loss_scale(self) -> float | None:
        """What fp16's next loss is multiplied by, so that its gradients fit; None in other precisions."""
        return float(self.scaler().cur_scale) if self.engine.fp16_enabled() else None

    def scaler(self) -> Any:
        """DeepSpeed's keeper of fp16's loss scale."""
        optimizer = self.engine.optimizer
        return optimizer.loss_scale_config if self.stage == 0 else optimizer.loss_scaler

    def step(self, lr: float) -> None:
        """End a micro-batch; at the last one of a step, update the weights with rate `lr`."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()

    def outcome(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(gradient norm before clipping, 1 if the last update was skipped as non-finite else 0), both 0-dim."""
        if self.guard is not None:
            assert self.guard.norm is not None
            assert self.guard.skipped is not None
            return self.guard.norm, self.guard.skipped
        applied = self.engine.was_step_applied()
        self.watch.switch(not applied or self.always_watched)
        if not applied:
            return torch.full((), float("inf"), device=device), torch.ones((), device=device)
        norm = self.engine.get_global_grad_norm()
        norm = norm.detach().float().to(device) if isinstance(norm, Tensor) else torch.full((), norm, device=device)
        if self.stage == 0 and self.scale_used is not None:
            norm = norm / self.scale_used  # only ZeRO has done that
        return norm.reshape(()), torch.zeros((), device=device)

    def gradients(self) -> Gradients | None:
        """Which gradients of the last step were finite, where that was looked at; nothing is computed on the host."""
        if self.guard is None:
            return self.watch.take()
        if self.guard.norms is None:
            return None
        return Gradients([self._names[id(weight)] for weight in self.guard.weights], torch.isfinite(self.guard.norms))

    def save(self, directory: Path) -> None:
        """Write weights and optimizer into `directory/name`; every rank calls it."""
        self.engine.save_checkpoint(str(directory), tag=self.name, save_latest=False)

    def load(self, directory: Path) -> None:
        """Read what `save` wrote on the same number of ranks at the same stage.

        Raises:
            ValueError: DeepSpeed found nothing to load.
        """
        path, _ = self.engine.load_checkpoint(str(directory), tag=self.name, load_lr_scheduler_states=False)
        if path is None:
            raise ValueError(f"checkpoint {directory} holds no {self.name} weights; remove the directory")
        for group in self.engine.optimizer.param_groups:  # the configuration's, which may have changed, not the file's
            group.update(self._settings)

    @contextlib.contextmanager
    def whole(self, *, write: bool = False) -> Iterator[nn.Module]:
        """The module with every parameter present on every rank; every rank enters.

        Args:
            write: keep what the ranks, all the same, write into the parameters; otherwise it may be lost.
        """
        if self.stage < 3:
            yield self.module
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), modifier_rank=0 if write else None):
            yield self.module

    def full_state(self) -> dict[str, Tensor]:
        """fp32 weights and buffers by name, on the host; every rank calls it, every rank gets them."""
        state = {name: buffer.detach().cpu() for name, buffer in self.module.state_dict(keep_vars=True).items()}
        for name, parameter in self.module.named_parameters():
            if name in self.frozen:
                state[name] = self.frozen[name]
            else:
                state[name] = self._master(parameter).detach().float().cpu().clone()
        return state

    @torch.no_grad()
    def restore_frozen(self, weights: dict[str, Tensor]) -> None:
        """Put `frozen` of an earlier part of the run back; every rank calls it."""
        assert weights.keys() == self.frozen.keys()
        self.frozen = weights
        with self.whole(write=True) as module:
            for name, value in weights.items():
                module.get_parameter(name).copy_(value)

    def masters(self) -> list[Tensor]:
        """This rank's fp32 masters, as the optimizer changes them in place: weights, or flat shards of weights."""
        optimizer = self.engine.optimizer
        if self.plain:
            return [*_learning(self.module)]
        if self.stage == 0:
            return [master for group in optimizer.fp32_groups for master in group]
        return list(
            optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        )

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """The whole fp32 master of a weight; a collective call."""
        if self.stage > 0:
            from deepspeed.utils import safe_get_full_fp32_param

            return safe_get_full_fp32_param(parameter)
        if self.plain:
            return parameter
        wrapper = self.engine.optimizer  # ZeRO 0 in 16-bit keeps masters in lists parallel to the weights
        for weights, masters in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for weight, master in zip(weights, masters, strict=True):
                if weight is parameter:
                    return master
        raise AssertionError("a weight without a master")


def _learning(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]

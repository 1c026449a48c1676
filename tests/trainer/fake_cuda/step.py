"""One training step of the autoencoder on fake tensors on `cuda:0`, with every operator counted.

The step is that of trainer/autoencoder.py, with the optimizer, the guard and the moving average of trainer/engine/, and
with `FakeEngine` in place of DeepSpeed.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.read.loader import Batch, Position
from model.attention import FASTEST_OVER_TIME, Kernel
from model.lpips import LPIPS
from tests.trainer.cases import tiny_config
from trainer.autoencoder import Autoencoder
from trainer.config.learning import Precision
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.engine.engine_settings import EngineSettings
from trainer.engine.optimizer import Guard, build_optimizer
from trainer.engine.torch_private import FakeTensorMode, TorchDispatchMode
from trainer.perceptual import untrained_perceptual
from trainer.telemetry.running_means import RunningMeans

DEVICE = torch.device("cuda:0")
TYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
# What makes no kernel: it allocates, or it is the same memory by another name.
ALLOCATIONS = ("empty", "new_empty", "detach", "alias", "_unsafe_view", "lift_fresh")


@dataclass(kw_only=True)
class Case:
    """A step to take.

    Args:
        words: settings, on top of `tiny_config` or of `files`.
        files: configuration files; without any, `tiny_config`.
        clips: of the micro-batch.
        mistake: a key of `MISTAKES`.
        over_time: the kernel of attention over time; empty for the usual one.
    """

    words: list[str]
    files: list[str] = field(default_factory=list)
    clips: int = 2
    mistake: str = ""
    over_time: str = ""


@dataclass
class Found:
    """What a step showed.

    Args:
        kernels: operators that compute, by the part of the step.
        host_reads: where the host read a value of the device: the stack.
        elsewhere: terms of the step that are not on the device.
        error: the traceback of what ended the step, else empty.
    """

    kernels: dict[str, int] = field(default_factory=dict)
    host_reads: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    error: str = ""


def _crosses(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operator copies numbers between the device and the host in a way for which the host waits."""
    name = func.name()
    if kwargs.get("non_blocking") or (name == "aten::copy_" and args[2:] == (True,)):
        return False  # of a batch in page-locked memory
    if name == "aten::_to_copy":
        given = kwargs.get("device")
        return given is not None and torch.device(given).type != args[0].device.type
    return name == "aten::copy_" and args[0].device.type != args[1].device.type


class OperatorCount(TorchDispatchMode):
    """Counts, inside it, the operators that compute, by the part of the step they belong to.

    One operator is about one kernel. In the update they are more than on a GPU, because torch clips fake gradients one
    by one, and not in one kernel for many.
    """

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.found, self.part = found, "losses"

    @contextlib.contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Inside, operators belong to `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name == "aten::_local_scalar_dense" or _crosses(func, args, kwargs or {}):
            self.found.host_reads.append("".join(traceback.format_stack(limit=12)))
        elif name.startswith("aten::") and not func.is_view and not name[6:].startswith(ALLOCATIONS):
            self.found.kernels[self.part] = self.found.kernels.get(self.part, 0) + 1
        return func(*args, **(kwargs or {}))


class FakeEngine:
    """What `Autoencoder` asks of an engine: the trainer's own optimizer and guard, without DeepSpeed."""

    def __init__(self, name: str, module: nn.Module, settings: EngineSettings, count: OperatorCount) -> None:
        move(module, TYPES[settings.precision])
        self.name, self.module, self.count = name, module, count
        self.frozen: dict[str, Tensor] = {}
        self.loss_scale: float | None = None
        self.guard = Guard(settings.optim.clip)
        self.optimizer = build_optimizer([(self.masters(), True)], settings.optimizer, self.guard)
        for parameter in self.masters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # the first step makes Adam's moments, which the other steps find
        self.optimizer.zero_grad()

    def masters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def __call__(self, *args: Any) -> Any:
        with self.count.during(f"{self.name} forward"):
            return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        with self.count.during(f"{self.name} backward"):
            loss.backward()

    def step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.count.during("update"):
            self.optimizer.step()
            self.optimizer.zero_grad()

    def exact(self, name: str) -> Tensor | None:
        """A stand-in for the fp32 master of a weight that is kept in 16 bits."""
        parameter = self.module.get_parameter(name).detach()
        return None if parameter.dtype is torch.float32 else parameter.float()

    def outcome(self, device: torch.device) -> tuple[Tensor, Tensor]:
        assert self.guard.norm is not None
        assert self.guard.skipped is not None
        return self.guard.norm, self.guard.skipped


class ReadingEngine(FakeEngine):
    """A mistake, for the test of the test: the host reads the loss."""

    def backward(self, loss: Tensor) -> None:
        print(float(loss.detach()), file=sys.stderr)
        super().backward(loss)


class CopyingEngine(FakeEngine):
    """The same by a copy, which waits as well."""

    def backward(self, loss: Tensor) -> None:
        loss.detach().to("cpu")
        torch.empty(()).copy_(loss.detach())
        torch.tensor(1.0, device=loss.device)
        super().backward(loss)


class MixingEngine(FakeEngine):
    """Another one: a tensor of the host meets one of the device."""

    def backward(self, loss: Tensor) -> None:
        super().backward((loss * torch.ones(2)).sum())


MISTAKES = {"": FakeEngine, "host read": ReadingEngine, "copies": CopyingEngine, "two devices": MixingEngine}


def run(case: Case) -> Found:
    """Take the step of a case, with its adversarial term, and add its terms up as telemetry does."""
    words = ["output=unused", "data.shards=unused", "gan.local_weight=true", *case.words]
    config = load_config(TrainConfig, case.files, words) if case.files else tiny_config("unused", *words)
    config.init_from = ""  # a frozen encoder must name one, and these weights have no values
    config.micro_batch, config.accumulation, config.data.global_batch = case.clips, 1, case.clips
    found = Found()
    count = OperatorCount(found)
    engine = MISTAKES[case.mistake]
    chosen = {("cuda", dtype): (config.data.frames, Kernel(case.over_time or "torch")) for dtype in TYPES.values()}
    with FakeTensorMode(), mock.patch.dict(FASTEST_OVER_TIME, chosen if case.over_time else {}):
        method = Autoencoder(
            config,
            Ranks(0, 1, 0, DEVICE, None),
            make_engine=lambda name, module, settings: engine(name, module, settings, count),
            make_perceptual=lambda loss, device: moved(untrained_perceptual(loss, torch.device("cpu"))),
        )
        batch = _batch(config, case.clips)
        try:
            with count:
                terms = method.step(batch, config.gan.start + config.gan.warmup + config.gan.ramp)
                with count.during("telemetry"):
                    RunningMeans(DEVICE).add(terms)
            found.elsewhere = [name for name, value in terms.items() if value.device != DEVICE]
        except Exception:  # noqa: BLE001  (whatever it is, it is the finding of this case, and the test shows it)
            found.error = traceback.format_exc()
    return found


def _batch(config: TrainConfig, clips: int) -> Batch:
    size, names = config.data.image_size, [""] * clips
    return Batch(
        video=torch.zeros(clips, 3, config.data.frames, size, size, dtype=torch.uint8),
        captions=names,
        labels=names,
        keys=names,
        indices=torch.zeros(clips).long(),
        position=Position(),
    )


def move(module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Put a module on the device, its parameters in `dtype`. (`Module.to` cannot swap fake parameters.)"""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            value = parameter.detach().to(DEVICE, dtype)
            setattr(part, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, buffer.to(DEVICE))


def moved(module: LPIPS | None) -> LPIPS | None:
    """The module itself, on the device."""
    if module is not None:
        move(module)
    return module


def act_as_gpu() -> None:
    """Let torch do what it does on a GPU: autocast to 16 bits, and the attention operators of CUDA."""
    for place in ("torch.cuda.amp.common", "torch.amp.autocast_mode"):
        importlib.import_module(place).amp_definitely_not_available = lambda: False  # type: ignore[attr-defined]
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    F.scaled_dot_product_attention = _attention


def _attention(query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float = 0.0, is_causal: bool = False) -> Tensor:
    """Flash attention in 16 bits, and the memory-efficient one in fp32, which flash attention does not have."""
    if query.dtype is torch.float32:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        needs_grad = torch.is_grad_enabled() and query.requires_grad
        result: Tensor = kernel(query, key, value, None, needs_grad, dropout_p, is_causal)[0]
        return result
    result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False)[0]
    return result

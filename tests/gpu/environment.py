"""What the machine has, and whether the project and DeepSpeed can be imported on it."""

from __future__ import annotations

import platform

import torch

from tests.gpu.findings import Context, holds, measured
from trainer.config.run import Device
from trainer.engine.device import device_kind
from trainer.engine.start_deepspeed import import_deepspeed
from trainer.telemetry.gpu_peaks import known_device


def run(context: Context) -> None:
    measured("python", platform.python_version())
    measured("torch", torch.__version__)
    if context.on_gpu:
        _gpu()
    import_deepspeed()
    import deepspeed

    measured("deepspeed", deepspeed.__version__)
    kind = device_kind(Device.auto)
    holds("the trainer's device", kind == context.device, kind, context.device)
    name = deepspeed.accelerator.get_accelerator().device_name()
    holds("DeepSpeed's device", name == context.device, name, context.device)


def _gpu() -> None:
    name = torch.cuda.get_device_name()
    measured("device", f"{torch.cuda.device_count()} x {name}")
    holds(
        "its peak is known", known_device(name) is not None, str(known_device(name)), "trainer/telemetry/gpu_peaks.py"
    )
    measured("memory", torch.cuda.get_device_properties(0).total_memory / 1e9, "GB")
    measured("CUDA", str(torch.version.cuda))
    measured("cuDNN", str(torch.backends.cudnn.version()))
    measured("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
    holds("bf16", torch.cuda.is_bf16_supported(), str(torch.cuda.is_bf16_supported()), "the presets train in bf16")

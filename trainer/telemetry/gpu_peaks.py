"""Peak speeds of GPUs from NVIDIA's data sheets, for MFU and for estimates."""

from __future__ import annotations

import re

from trainer.config.learning import Precision
from trainer.config.train import TrainConfig

# Dense peaks in FLOP/s: 16-bit and TF32 with tensor cores, fp32 without. A device has the first key whose parts all
# occur in the device's name.
PEAKS = {
    "h100-pcie": (756e12, 378e12, 51e12),
    "h100-nvl": (835e12, 417e12, 60e12),
    "h100": (989e12, 494e12, 67e12),
    "h200": (989e12, 494e12, 67e12),
    "a100": (312e12, 156e12, 19.5e12),
    "l40s": (362e12, 183e12, 91.6e12),
    "l40": (181e12, 90.5e12, 90.5e12),
    "l4": (121e12, 60e12, 30.3e12),
}


def peak(config: TrainConfig, device: str) -> float:
    """Peak FLOP/s of a device of `PEAKS` in the configuration's precision."""
    sixteen, tf32, fp32 = PEAKS[device]
    if config.precision is not Precision.fp32:
        return sixteen
    return tf32 if config.tf32 else fp32


def known_device(name: str) -> str | None:
    """The key of `PEAKS` for a GPU's name as CUDA gives it; None for a GPU that is not in `PEAKS`."""
    parts = set(re.split(r"[\s-]+", name.lower()))
    return next((device for device in PEAKS if parts.issuperset(device.split("-"))), None)

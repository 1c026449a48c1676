"""Peaks by the names that CUDA gives; the figures are the data sheets'."""

import pytest

from tests.trainer.cases import tiny_config
from trainer.telemetry.gpu_peaks import known_device, peak


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_gpu_is_known_by_whole_words_of_its_name(name: str, device: str | None) -> None:
    assert known_device(name) == device


def test_peaks_follow_the_precision() -> None:
    def of(precision: str, tf32: bool, device: str) -> float:
        return peak(tiny_config("run", f"precision={precision}", f"tf32={tf32}"), device)

    assert of("bf16", True, "h100") == 989e12
    assert of("fp32", True, "h100") == 494e12
    assert of("fp32", False, "a100") == 19.5e12

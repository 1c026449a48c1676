"""A machine with a GPU that torch cannot use is refused with the reason; machines are folders with /dev and /sys."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from trainer.config.run import Device
from trainer.engine import deepspeed_private
from trainer.engine.device import device_kind, find_device, gpus_have_names, own_device


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a GPU, and an environment that says nothing of one; torch is built for CUDA and sees none."""
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "LOCAL_SIZE", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for folder in ("bin", "dev", "sys/bus/pci/devices"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    return tmp_path


def with_device_file(root: Path) -> None:
    (root / "dev" / "nvidia0").touch()


def with_card(root: Path, device_class: str = "0x030200", vendor: str = "0x10de") -> None:
    card = root / "sys/bus/pci/devices/0000:17:00.0"
    card.mkdir()
    (card / "vendor").write_text(f"{vendor}\n")
    (card / "class").write_text(f"{device_class}\n")


def with_nvidia_smi(root: Path, text: str = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)", status: int = 0) -> None:
    script = root / "bin" / "nvidia-smi"
    script.write_text(f"#!/bin/sh\necho '{text}'\nexit {status}\n")
    script.chmod(0o755)


def test_a_machine_without_gpu_trains_on_the_processor(machine: Path) -> None:
    (machine / "dev" / "nvidiactl").touch()  # a driver without a device
    with_nvidia_smi(machine, "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver", 9)
    assert device_kind(Device.auto, machine) == "cpu"


@pytest.mark.parametrize(
    "card", [{"vendor": "0x8086"}, {"device_class": "0x040300"}], ids=["another vendor", "the sound of a card"]
)
def test_other_devices_are_no_gpus(machine: Path, card: dict[str, str]) -> None:
    with_card(machine, **card)
    assert device_kind(Device.auto, machine) == "cpu"


@pytest.mark.parametrize(
    ("add", "sign"),
    [
        (with_device_file, "/dev/nvidia0"),
        (with_card, "PCI device 0000:17:00.0"),
        (with_nvidia_smi, "nvidia-smi lists GPU 0: NVIDIA H100 80GB HBM3"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_refused_unless_the_processor_is_asked_for(
    machine: Path, add: Callable[[Path], None], sign: str
) -> None:
    add(machine)
    with pytest.raises(ValueError, match=r"^device=auto: this machine has a GPU \(") as refused:
        device_kind(Device.auto, machine)
    assert f"({sign})" in str(refused.value)
    assert str(refused.value).endswith("or set device=cpu to train on the processor")
    with pytest.raises(ValueError, match=r"^device=cuda needs a GPU, and torch can use none here: "):
        device_kind(Device.cuda, machine)
    assert device_kind(Device.cpu, machine) == "cpu"


def test_the_reason_is_the_build_of_torch(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with_device_file(machine)
    with pytest.raises(ValueError, match="is built without CUDA; install the torch build for your CUDA version"):
        device_kind(Device.auto, machine)


def test_the_reason_is_a_variable_that_hides_it(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with_device_file(machine)
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES= hides every GPU"):
        device_kind(Device.auto, machine)


def test_the_reason_is_a_container_without_its_devices(machine: Path) -> None:
    with_card(machine)
    with pytest.raises(ValueError, match=r"no /dev/nvidia0; .*docker run --gpus all"):
        device_kind(Device.auto, machine)


def test_the_reason_is_the_driver_in_its_own_words(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "The NVIDIA driver on your system is too old (found version 12040)."
    monkeypatch.setattr(torch.cuda, "init", mock.Mock(side_effect=RuntimeError(f"{said}\nPlease update")))
    with_device_file(machine)
    with pytest.raises(ValueError, match="too old") as refused:
        device_kind(Device.auto, machine)
    assert f"{said} (torch {torch.__version__} for CUDA 13.0); update the driver" in str(refused.value)


def test_the_variable_of_deepspeed_decides_where_the_setting_does_not(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_device_file(machine)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert device_kind(Device.auto, machine) == "cpu"
    with pytest.raises(ValueError, match="device=cuda contradicts DS_ACCELERATOR=cpu; unset DS_ACCELERATOR"):
        device_kind(Device.cuda, machine)
    monkeypatch.setenv("DS_ACCELERATOR", "xpu")
    with pytest.raises(ValueError, match="DS_ACCELERATOR=xpu is not supported"):
        device_kind(Device.auto, machine)


@pytest.mark.parametrize(
    ("gpus", "environment", "expected"),
    [
        (8, {}, 0),
        (8, {"LOCAL_RANK": "5", "LOCAL_SIZE": "8"}, 5),
        (1, {"LOCAL_RANK": "5", "LOCAL_SIZE": "8", "SLURM_LOCALID": "5"}, 0),  # SLURM has bound one GPU to the task
        (8, {"LOCAL_RANK": "5", "LOCAL_SIZE": "8", "SLURM_LOCALID": "5"}, 5),
        (1, {"LOCAL_RANK": "0", "LOCAL_SIZE": "2"}, "2 ranks on this machine need a GPU each, and torch sees 1;"),
        (
            2,
            {"LOCAL_RANK": "3", "CUDA_VISIBLE_DEVICES": "0,1"},
            r"4 ranks .* torch sees 2 \(CUDA_VISIBLE_DEVICES=0,1\); start as many ranks as there are GPUs",
        ),
    ],
)
def test_each_rank_has_a_gpu_of_its_own(
    machine: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, environment: dict[str, str], expected: int | str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, int):
        assert own_device(Device.auto) == torch.device("cuda", expected)
    else:
        with pytest.raises(ValueError, match=expected):
            own_device(Device.cuda)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        *((numbers, False) for numbers in (None, "", "0,1", " 3 , 4", "-1")),
        *((listed, True) for listed in ("GPU-8f3a,GPU-1b", "MIG-GPU-8f3a/1/0")),
    ],
)
def test_numbers_and_names_of_gpus_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, names: bool
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_have_names() is names


def test_deepspeed_measures_memory_of_a_gpu_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's own code for a GPU, with the driver's library and torch's figures made up."""
    from deepspeed.accelerator import cuda_accelerator, real_accelerator

    monkeypatch.setattr(cuda_accelerator.CUDA_Accelerator, "_init_pynvml", lambda self: None)
    accelerator = cuda_accelerator.CUDA_Accelerator()
    assert sys.modules[type(accelerator).__module__] is cuda_accelerator
    figures: dict[str, Any] = {"total_memory": lambda index: 80, "memory_allocated": lambda index: 30}
    for name, figure in figures.items():
        monkeypatch.setattr(accelerator, name, figure)
    monkeypatch.setattr(accelerator, "current_device", lambda: 0)
    library = mock.Mock(spec=["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"])
    monkeypatch.setattr(cuda_accelerator, "pynvml", library)
    monkeypatch.setattr(real_accelerator, "ds_accelerator", accelerator)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f3a")
    with pytest.raises(ValueError, match="invalid literal"):
        accelerator.available_memory()
    deepspeed_private.forget_nvml()
    assert accelerator.available_memory() == 50


def test_the_number_of_a_gpu_is_the_one_that_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps eight bits of it: `torch.device("cuda:256")` is cuda:0, and "cuda:200" has the index -56."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for number in (2, 200, 256, 10**20):
        with pytest.raises(ValueError, match=f"--device cuda:{number}: torch sees 2 GPUs here, from cuda:0 on"):
            find_device(f"cuda:{number}")
    assert [find_device(name) for name in ("cuda", "cuda:0", "cuda:01", "auto")] == [
        torch.device("cuda"),
        torch.device("cuda", 0),
        torch.device("cuda", 1),
        torch.device("cuda"),
    ]

"""The device of this process: a GPU or the processor. A GPU that cannot be used is an error, never a silent CPU run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import torch

from data_pipeline.store.counted import counted
from trainer.config.run import Device

NVIDIA_SMI_TIMEOUT_S = 30.0
NVIDIA, DISPLAYS = "0x10de", ("0x0300", "0x0302")  # PCI vendor; classes of graphics and of 3-D controllers


def device_kind(wanted: Device, root: Path = Path("/")) -> str:
    """'cuda' or 'cpu'.

    DS_ACCELERATOR, by which DeepSpeed hears of the device, decides where `wanted` is `auto` and the variable is set.

    Args:
        wanted: the setting `device`.
        root: of the file system in which /dev and /sys are looked at.
    Raises:
        ValueError: a GPU is wanted, or is in this machine, and torch cannot use it; or the setting and DS_ACCELERATOR
            contradict each other.
    """
    variable = os.environ.get("DS_ACCELERATOR", "")
    if variable not in ("", "cpu", "cuda"):
        raise ValueError(f"DS_ACCELERATOR={variable} is not supported; unset it, and set device=cpu or device=cuda")
    if variable and wanted is not Device.auto and variable != wanted.value:
        raise ValueError(f"device={wanted.value} contradicts DS_ACCELERATOR={variable}; unset DS_ACCELERATOR")
    kind = variable or wanted.value
    if kind == Device.cpu.value:
        return "cpu"
    asked = f"DS_ACCELERATOR={variable}" if variable else f"device={kind}"
    instead = "set device=cpu to train on the processor"
    return "cuda" if finds_gpu(asked, instead, needed=kind == Device.cuda.value, root=root) else "cpu"


def finds_gpu(asked: str, instead: str, *, needed: bool, root: Path = Path("/")) -> bool:
    """Whether torch can use a GPU here. A GPU that is there and cannot be used is refused, never passed over.

    Args:
        asked: how messages name the user's word, such as `device=auto`.
        instead: what messages tell a user who wants the processor.
        needed: whether a machine without a GPU is refused too.
        root: of the file system in which /dev and /sys are looked at.
    Raises:
        ValueError: torch can use no GPU, and the machine has one or one is needed.
    """
    if torch.cuda.is_available():
        return True
    sign = sign_of_gpu(root)
    if not sign and not needed:
        return False
    reason = why_no_gpu(sign, instead, root)
    if needed:
        raise ValueError(f"{asked} needs a GPU, and torch can use none here: {reason}")
    raise ValueError(f"{asked}: this machine has a GPU ({sign}), and torch cannot use it: {reason}; or {instead}")


def find_device(name: str, root: Path = Path("/")) -> torch.device:
    """The device of `--device`: cpu, cuda, cuda:N, or auto for a GPU if the machine has one and else the CPU.

    Args:
        root: of the file system in which /dev and /sys are looked at.
    Raises:
        ValueError: there is no such GPU; or, for auto too, the machine has a GPU and torch cannot use it.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not finds_gpu(f"--device {name}", "pass --device cpu to use the processor", needed=name != "auto", root=root):
        return torch.device("cpu")
    number, count = name.partition(":")[2], torch.cuda.device_count()
    if number and int(number) >= count:  # the text's number, because torch takes cuda:256 for cuda:0
        raise ValueError(f"--device {name}: torch sees {counted(count, 'GPU')} here, from cuda:0 on; use --device auto")
    return torch.device("cuda", int(number)) if number else torch.device("cuda")


def sign_of_gpu(root: Path = Path("/")) -> str:
    """What shows that this machine has an NVIDIA GPU, whether or not torch can use it; empty where nothing does."""
    devices = _device_files(root)
    if devices:
        return str(Path("/") / devices[0].relative_to(root))
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if _line(device / "vendor") == NVIDIA and _line(device / "class").startswith(DISPLAYS):
            return f"PCI device {device.name}"
    return _nvidia_smi()


def why_no_gpu(sign: str, instead: str, root: Path = Path("/")) -> str:
    """Why torch can use no GPU, with the remedy.

    Args:
        sign: what `sign_of_gpu` found.
        instead: how the processor is chosen, for a machine without a GPU.
        root: of the file system in which /dev is looked at.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install the torch build for your CUDA version"
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES={visible} hides every GPU; unset it"
    if not sign:
        return f"no NVIDIA device is found; {instead}"
    if not _device_files(root):
        return (
            "there is no /dev/nvidia0; load the driver (nvidia-smi must list the GPU), or, in a container, start it "
            "with its GPUs (docker run --gpus all; nvidia.com/gpu in a pod's limits)"
        )
    try:
        torch.cuda.init()
        said = "CUDA starts but counts no device"
    except RuntimeError as error:
        said = str(error).strip().split("\n")[0]
    return (
        f"{said} (torch {torch.__version__} for CUDA {torch.version.cuda}); update the driver, or install another torch"
    )


def own_device(wanted: Device) -> torch.device:
    """The device of this rank, which is number LOCAL_RANK on its machine.

    Raises:
        ValueError: as `device_kind`; or there are fewer GPUs than ranks. All ranks of a machine raise it then.
    """
    if device_kind(wanted) == "cpu":
        return torch.device("cpu")
    count, rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    ranks = max(rank + 1, int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    if "SLURM_LOCALID" in os.environ and count == 1:
        return torch.device("cuda", 0)  # SLURM shows each task a GPU of its own (--gpus-per-task, --gpu-bind)
    if ranks > count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
        raise ValueError(
            f"{ranks} ranks on this machine need a GPU each, and torch sees {count}{shown}; start as many ranks as "
            "there are GPUs, and let each rank see all of them"
        )
    return torch.device("cuda", rank)


def gpus_have_names() -> bool:
    """Whether CUDA_VISIBLE_DEVICES lists UUIDs (GPU-..., MIG-...) and not numbers."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return any(part.strip() and not part.strip().lstrip("-").isdigit() for part in visible.split(","))


def _device_files(root: Path) -> list[Path]:
    return sorted((root / "dev").glob("nvidia[0-9]*"))


def _nvidia_smi() -> str:
    """That nvidia-smi lists a GPU, or does not answer; empty where the command is missing or finds no GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    try:
        done = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi does not answer: {error}"
    first = done.stdout.strip().partition("\n")[0]
    found = done.returncode == 0 and first.startswith("GPU ")
    return f"nvidia-smi lists {first.partition(' (UUID')[0]}" if found else ""


def _line(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""

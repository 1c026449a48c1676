"""Weights on disk, read without ever running what a file says."""

import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_pipeline.outside.regular import check_regular


def load_pickle(path: str | Path) -> Any:
    """Read a file written by `torch.save`, tensors and plain containers only.

    Raises:
        OSError: no such file, or no regular one.
        ValueError: the file holds anything else, or is damaged; nothing in it was executed.
    """
    try:
        check_regular(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), "it is not a plain pickle")
        raise ValueError(
            f"{path} holds more than tensors and plain containers ({reason.strip()}), so it was refused and nothing in "
            "it was run. Where you trust the file, write its tensors alone: torch.save({'state_dict': "
            "torch.load(path, weights_only=False)['state_dict']}, 'weights.ckpt')"
        ) from error
    except Exception as error:
        raise ValueError(f"{path} is not a complete torch file ({type(error).__name__}: {error})") from error


def tensors_of(document: Any, source: str) -> dict[str, Tensor]:
    """The state dict in a loaded file: the document itself, or what it holds under `state_dict`.

    Raises:
        ValueError: it is not a mapping of names to tensors.
    """
    state = document.get("state_dict", document) if isinstance(document, Mapping) else document
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{source} holds no state dict (a mapping of names to tensors)")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{source}: entry {name!r} is a {type(value).__name__}, not a tensor")
    return {str(name): value for name, value in state.items()}


def check_keys(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not exactly the expected names and shapes, naming the first that differs."""
    for name in sorted(weights.keys() ^ expected.keys()):
        raise ValueError(f"{source}: weight {name!r} is {'unknown' if name in weights else 'missing'}")
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise ValueError(
                f"{source}: weight {name!r} has shape {list(weights[name].shape)}, but the configuration needs "
                f"{list(value.shape)}"
            )


UNREADABLE = (SafetensorError, OverflowError, TypeError, RuntimeError, MemoryError)
"""What reading safetensors raises for a damaged or made-up file; all but the first, for sizes beyond those of torch."""


def not_complete(file: str | Path, error: Exception) -> ValueError:
    """The refusal of a file whose reading raised one of `UNREADABLE`, without the stack that torch puts behind some."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{file} is not a complete safetensors file ({reason})")


def save_tensors(tensors: Mapping[str, Tensor], file: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whatever layout they have in memory, readable as any new file is.

    safetensors alone would let only its writer read the file, which on shared storage locks out everybody else.

    Args:
        metadata: texts by key that the file carries beside the tensors; None = nothing.
    Raises:
        OSError: the disk is full or fails.
    """
    file = Path(file)
    file.touch()
    mode = file.stat().st_mode
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, file, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # safetensors hides the error of the system in its text
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
    file.chmod(mode)


def save_module(module: nn.Module, file: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a module's whole state dict as safetensors, with `metadata` as in `save_tensors`."""
    save_tensors(module.state_dict(), file, metadata)


def load_tensors(file: str | Path) -> dict[str, Tensor]:
    """Read safetensors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or something else.
    """
    check_regular(file)
    try:
        return load_file(file)
    except UNREADABLE as error:
        raise not_complete(file, error) from error


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """What makes two models the same: SHA-256 over names, types, shapes and values, in hexadecimal.

    Args:
        weights: all tensors of a state dict, on the host, in any order.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}\n".encode())
        digest.update(weight.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_module(module: nn.Module, file: str | Path) -> None:
    """Fill a module from safetensors; every name and shape must be there and fit (ValueError names the first not)."""
    weights = load_tensors(file)
    check_keys(weights, module.state_dict(), str(file))
    module.load_state_dict(weights)


def check_module_file(module: nn.Module, file: str | Path) -> None:
    """Refuse what `load_module` would refuse, from the file's header alone.

    Args:
        module: may be on the meta device.
    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, or another module's; the message names the first weight that does not fit.
    """
    check_regular(file)
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}
        weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    except UNREADABLE as error:
        raise not_complete(file, error) from error
    check_keys(weights, module.state_dict(), str(file))

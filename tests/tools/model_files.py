"""The weights in a model directory, without what the files say of where they come from."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file


def weight_bytes(directory: Path) -> dict[str, bytes]:
    """`model.safetensors/NAME` -> the bytes of that weight, of every file of weights in the directory."""
    return {
        f"{file.name}/{name}": weight.numpy().tobytes()
        for file in sorted(directory.glob("*.safetensors"))
        for name, weight in load_file(file).items()
    }

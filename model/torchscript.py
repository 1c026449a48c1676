"""TorchScript networks of others, opened only where their code computes and does nothing else.

TorchScript is code, but not Python: a network can name only the operations of torch. Two of them write to any file
(`torch.from_file` with `shared=True`, and `torch.save`), and those of other namespaces speak to other processes or read
files. A network may also run code while it is loaded (`__setstate__`). So the code is read before torch sees the file,
and torch is given a copy of what was read and not the file itself, which somebody could replace in between.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from data_pipeline.outside.regular import open_regular

MOST_BYTES = 2**32
"""Bytes of a network, unpacked. The I3D of FVD has 50 MB."""
_NAMESPACES = "prim|aten|torchvision|quantized"
_FORBIDDEN = (
    (re.compile(rb"\b(from_file|save)\b"), "an operation on files"),
    (re.compile(rb"\bops\b(?!\.(?:" + _NAMESPACES.encode() + rb")\.)"), "an operation of another library"),
)
"""In the code of a network, which lies in files that end with `.py`. The names count wherever they stand there, because
the same code may be written in many ways."""
_FOREIGN_CLASS = re.compile(rb"torch\s*\.\s*classes\b(?!\.quantized\.)")
"""In code and in pickles: an object whose methods are those of another library."""


def load_script(file: Path, device: torch.device) -> Any:
    """Open a TorchScript network that computes and does nothing else, in evaluation mode.

    Args:
        file: as `torch.jit.save` writes it.
        device: where the network computes.
    Raises:
        ValueError: the file is no such archive, is larger than `MOST_BYTES`, or holds code that does more than compute.
            None of the code was run.
        RuntimeError: torch cannot open the archive.
        OSError: the file cannot be read, or is no regular file.
    """
    return torch.jit.load(_checked_copy(file), map_location=device).eval()


def _checked_copy(file: Path) -> io.BytesIO:
    copy = io.BytesIO()
    try:
        with open_regular(file) as opened, zipfile.ZipFile(opened) as archive, zipfile.ZipFile(copy, "w") as written:
            members = archive.infolist()
            if len({member.filename for member in members}) != len(members):
                raise ValueError("it holds two files of one name")
            if sum(member.file_size for member in members) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES} bytes when it is unpacked")
            for member in members:
                data = archive.read(member)
                _check(member.filename, data)
                written.writestr(member.filename, data)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"it is no whole archive of torch.jit.save: {error}") from error
    copy.seek(0)
    return copy


def _check(name: str, data: bytes) -> None:
    """Refuse a member of the archive that does more than compute. Raises: ValueError."""
    if name.endswith(".py"):
        for pattern, what in _FORBIDDEN:
            if found := pattern.search(data):
                line = data.count(b"\n", 0, found.start()) + 1
                raise ValueError(f"its code holds {what} ({found[0].decode()}, {name} line {line}); nothing was run")
    if name.endswith((".py", ".pkl")) and _FOREIGN_CLASS.search(data):
        raise ValueError(f"{name} holds an object of another library (torch.classes); nothing in it was run")

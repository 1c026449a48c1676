"""Raw pictures (`.yuv`), which have no header: their size and rate stand in the file name, as MCL-JCV writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

RAW_SUFFIX = ".yuv"
_NAME = re.compile(r"_([1-9]\d*)x([1-9]\d*)_(\d+(?:\.\d+)?)(?:fps|Hz)?\.yuv$", re.IGNORECASE)


@dataclass(frozen=True)
class RawGeometry:
    """Pixels of a frame and frames a second."""

    width: int
    height: int
    fps: Fraction


def is_raw(name: str) -> bool:
    """Whether a file of this name holds raw pictures."""
    return name.lower().endswith(RAW_SUFFIX)


def raw_geometry(name: str) -> RawGeometry:
    """Size and rate from the name `<anything>_<width>x<height>_<fps>.yuv` of a file of raw pictures.

    Raises:
        ValueError: the name does not have this form.
    """
    match = _NAME.search(name)
    if match is None or not Fraction(match[3]):
        raise ValueError(
            f"{name}: a raw .yuv file must be named <name>_<width>x<height>_<fps>.yuv, as MCL-JCV names its files"
        )
    return RawGeometry(int(match[1]), int(match[2]), Fraction(match[3]))


def raw_ending(name: str) -> str:
    """The end of a raw file's name that says size and rate, which a copy of the file must keep; "" without one."""
    match = _NAME.search(name)
    return match[0] if match else ""

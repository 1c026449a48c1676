"""Errors of libav, for cutting and for reading: their text, and the case that memory ran out."""

from __future__ import annotations

import errno

import av
import av.container
import av.error


def raise_if_out_of_memory(error: av.error.FFmpegError) -> None:
    """Raise MemoryError for a lack of memory, which says nothing about the file and must not count as damage."""
    if error.errno == errno.ENOMEM:
        raise MemoryError("the decoder ran out of memory") from error


def describe(error: Exception) -> str:
    """FFmpeg's text for an error, without the number and the path."""
    return str(getattr(error, "strerror", None) or error)

"""What both cutting and reading ask of libav: errors in words, and memory that ran out."""

from __future__ import annotations

import errno

import av
import av.container
import av.error


def raise_if_out_of_memory(error: av.error.FFmpegError) -> None:
    """Lack of memory says nothing about the file, so it must not pass for damage."""
    if error.errno == errno.ENOMEM:
        raise MemoryError("the decoder ran out of memory") from error


def describe(error: Exception) -> str:
    """FFmpeg's words for an error, without its number and path."""
    return str(getattr(error, "strerror", None) or error)

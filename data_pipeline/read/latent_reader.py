"""Reads the stored tensors and the caption of latent samples. Nothing here needs torch.

All samples of a dataset have the same tensors, so the tensors of a sample become one row of bytes, in the order of
their names and without the safetensors header. Rows of many samples are converted to float32 together.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import safetensors

from data_pipeline.dataset.captions import captions_of
from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.exact_sums import Float32Array
from data_pipeline.dataset.latent_records import LatentsDescription
from data_pipeline.dataset.latent_tensors import as_float32
from data_pipeline.dataset.tar import BLOCK, ClipError, padded, size_of_file
from data_pipeline.read.sample_table import Sample
from data_pipeline.read.shard_files import ShardFiles
from data_pipeline.read.two_tries import TwoTries

Uint8Array = npt.NDArray[np.uint8]

_TYPES = {LatentDtype.fp32: ("F32", 4), LatentDtype.fp16: ("F16", 2), LatentDtype.bf16: ("BF16", 2)}
"""Type -> its name in a safetensors file, and its bytes."""
_MOST_HEADERS = 64  # that are remembered; a dataset has one, or one for each release of safetensors that wrote it


class LatentRow:
    """How the tensors of a sample lie one behind the other in a row of bytes.

    Args:
        latents: what dataset.json says of the tensors.
        names: which of them are read.

    Attributes:
        shapes: tensor -> its shape, in the order of the row. A safetensors file of torch has the same order, so that
            often one piece is copied.
        dtype: type of all values.
        bytes: length of a row.
    """

    def __init__(self, latents: LatentsDescription, names: Sequence[str]) -> None:
        self.shapes = {name: latents.shapes[name] for name in sorted(names)}
        self.dtype = latents.dtype
        self._type, self._item = _TYPES[latents.dtype]
        self._stored = dict(latents.shapes)
        self._places: dict[str, tuple[int, int]] = {}  # tensor -> first value in the row, and one behind the last
        end = 0
        for name, shape in self.shapes.items():
            begin, end = end, end + int(np.prod(shape))
            self._places[name] = (begin, end)
        self.bytes = end * self._item
        # safetensors header and length of the file -> (place in the file's data, place in the row, length) of pieces
        self._pieces: dict[tuple[bytes, int], list[tuple[int, int, int]]] = {}

    def place(self, name: str) -> slice:
        """Where the values of a tensor lie among the values of a row."""
        return slice(*self._places[name])

    def copy(self, raw: bytes, begin: int, size: int, out: Uint8Array) -> None:
        """Copy the tensors of a safetensors file to a row.

        Args:
            raw: holds the file in the `size` bytes from `begin` on.
            out: uint8 [bytes].
        Raises:
            ClipError: it is no such file, or its tensors are not those that dataset.json says.
        """
        data = begin + 8 + int.from_bytes(raw[begin : begin + 8], "little")
        header = raw[begin:data]
        pieces = self._pieces.get((header, size))
        if pieces is None:
            pieces = self._look(raw[begin : begin + size])
            if len(self._pieces) >= _MOST_HEADERS:
                self._pieces.clear()
            self._pieces[header, size] = pieces
        for source, target, length in pieces:
            out[target : target + length] = np.frombuffer(raw, np.uint8, length, data + source)

    def float32(self, rows: Uint8Array) -> dict[str, Float32Array]:
        """The tensors [b, ...] of rows [b, bytes]; float32 holds every stored value exactly."""
        values = as_float32("a row", self._type, np.ascontiguousarray(rows).reshape(-1)).reshape(len(rows), -1)
        return {name: values[:, self.place(name)].reshape(-1, *shape) for name, shape in self.shapes.items()}

    def _look(self, file: bytes) -> list[tuple[int, int, int]]:
        """The pieces of a file with a header that was not seen before. Raises: ClipError."""
        try:
            found = dict(safetensors.deserialize(file))
        except safetensors.SafetensorError as error:
            raise ClipError(f"holds no readable safetensors: {error}") from error
        for name, shape in self._stored.items():
            held = found.get(name)
            if held is None or held["dtype"] != self._type or tuple(held["shape"]) != shape:
                has = "not" if held is None else f"as {held['shape']} of {held['dtype']}"
                raise ClipError(f"has the tensor {name} {has}; dataset.json says {list(shape)} of {self._type}")
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        pieces: list[tuple[int, int, int]] = []
        for name, (begin, end) in self._places.items():
            source, target, length = header[name]["data_offsets"][0], begin * self._item, (end - begin) * self._item
            if pieces and sum(pieces[-1][::2]) == source:  # it follows the piece before in the file as in the row
                source, target, length = pieces[-1][0], pieces[-1][1], pieces.pop()[2] + length
            pieces.append((source, target, length))
        return pieces


class LatentReader:
    """Reads latent samples of one dataset. Each process needs an instance of its own.

    Args:
        files: the dataset's shards.
        row: which tensors are read.
    """

    def __init__(self, files: ShardFiles, row: LatentRow) -> None:
        self._samples = TwoTries(files)
        self._row = row

    def read(self, sample: Sample, out: Uint8Array) -> str:
        """Copy the tensors of a sample to a row [bytes] and return its caption.

        The bytes are held against the CRC-32 that the index has of them, because a changed bit would only be another
        number.

        Raises:
            UnreadableSample: neither the local bytes nor a fresh download could be read.
            StoreError: the storage fails, so nothing is known about the sample.
        """
        return self._samples.read(sample, lambda raw: self._decode(raw, sample, out))

    def read_captions(self, sample: Sample, out: Uint8Array) -> tuple[str, ...]:
        """Read as `read` does, but return all captions of the sample, `(EMPTY,)` where it has none."""

        def decode(raw: bytes) -> tuple[str, ...]:
            caption = self._decode(raw, sample, out)
            return captions_of(raw[BLOCK : sample.video_offset - sample.offset - BLOCK].rstrip(b"\0"), caption.encode())

        return self._samples.read(sample, decode)

    def _decode(self, raw: bytes, sample: Sample, out: Uint8Array) -> str:
        if len(raw) != sample.size or zlib.crc32(raw) != sample.crc32:
            raise ClipError(f"has other bytes than the index says: the CRC-32 is {zlib.crc32(raw):08x}")
        begin = sample.video_offset - sample.offset
        self._row.copy(raw, begin, sample.video_size, out)
        return _caption(raw, begin + padded(sample.video_size), sample.key)


def _caption(raw: bytes, header: int, key: str) -> str:
    """The text of the member behind the tensors, whose tar header begins at byte `header`. Raises: ClipError."""
    if raw[header : header + 100].rstrip(b"\0") != f"{key}.txt".encode():
        raise ClipError(f"has no member {key}.txt behind the tensors")
    try:
        size = size_of_file(raw[header : header + BLOCK])
        return raw[header + BLOCK : header + BLOCK + size].decode()
    except tarfile.ReadError as error:
        raise ClipError(f"has a damaged tar header in front of its caption: {error}") from error
    except UnicodeDecodeError as error:
        raise ClipError("has a caption that is not UTF-8") from error

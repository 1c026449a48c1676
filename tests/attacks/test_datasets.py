"""Datasets of a stranger: dataset.json, index.arrow and shards that lie. The loader ends in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.index import read_unit_index
from data_pipeline.dataset.kind import LATENTS
from data_pipeline.dataset.tar import ClipError, encoded, parse_members, read_header
from data_pipeline.read.latent_archive import open_latents
from data_pipeline.read.sample_table import SampleTable
from data_pipeline.read.two_tries import UnreadableSample
from data_pipeline.store.local import LocalStore
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.data_pipeline.latents_dataset import make_clips as made_up_clips
from tests.data_pipeline.latents_dataset import settings_of, write_latents

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset; not to be changed."""
    return write_dataset(tmp_path_factory.mktemp("good"), split_into_shards(make_clips(6, frames=(9, 12)), [3]))


@pytest.fixture
def hostile(good: Path, tmp_path: Path) -> Path:
    """A copy of its description and its index."""
    for name in ("dataset.json", "index.arrow"):
        (tmp_path / name).write_bytes((good / name).read_bytes())
    return tmp_path


# ---- dataset.json ---------------------------------------------------------------------------------------------------


def edited(**fields: Any) -> Callable[[dict[str, Any]], str]:
    return lambda document: json.dumps(document | fields)


def shard(**fields: Any) -> Callable[[dict[str, Any]], str]:
    return lambda document: json.dumps(document | {"shards": [entry | fields for entry in document["shards"]]})


DESCRIPTIONS: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "fps is a text": (edited(fps="1/0"), "fps must be a number"),
    "fps is infinite": (edited(fps=float("inf")), "Infinity"),
    "fps beyond a double": (lambda document: json.dumps(document).replace('"fps": 8', '"fps": 1e999'), "beyond"),
    "fps is 0": (edited(fps=0), "fps must be a number above 0"),
    "fps is negative": (edited(fps=-8), "fps must be a number above 0"),
    "bytes are infinite": (shard(bytes=float("inf")), "Infinity"),
    "bytes are negative": (shard(bytes=-1), r"shards\[0\]\.bytes must be the bytes of a file"),
    "bytes of 5000 digits": (
        lambda document: json.dumps(document).replace('"bytes": ', '"bytes": ' + "9" * 5000, 1),
        "digits",
    ),
    "a shard outside": (shard(name="../../etc/passwd"), r"shards\[0\]\.name must be a path inside the dataset"),
    "a shard at the root": (shard(name="/etc/passwd"), "must be a path inside"),
    "a shard that is a number": (shard(name=7), "must be a text"),
    "an index outside": (
        lambda document: json.dumps(document | {"index": document["index"] | {"name": "../x"}}),
        r"index\.name must be a path inside",
    ),
    "lists without end": (lambda document: '{"format": 1, "x": ' + "[" * 200_000 + "]" * 200_000 + "}", "deeply"),
    "an escape as format": (edited(format="\x1b]0;x\x07"), "format must be a whole number"),
    "a list": (lambda document: "[]", "JSON object"),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_that_lies_is_refused_by_field(name: str, hostile: Path) -> None:
    make, message = DESCRIPTIONS[name]
    file = hostile / "dataset.json"
    text = make(json.loads(file.read_text()))
    assert text != file.read_text()
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        DatasetFile.load(LocalStore(hostile))
    assert "dataset.json" in str(refused.value)
    assert "\x1b" not in str(refused.value)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of latents; not to be changed."""
    root = tmp_path_factory.mktemp("latents")
    write_latents(root, [made_up_clips(2)], settings_of(LatentDtype.fp16, logvar=True))
    return root


OF_LATENTS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a shape that is a number": (("shapes", "structure"), 3, "shapes.structure must be a list"),
    "a size that is a text": (("shapes", "structure"), [3, 4, 2, "2"], r"shapes\.structure\[3\] must be a whole"),
    "three axes in place of four": (("shapes", "structure"), [3, 4, 2], "shapes.structure must be 4 sizes"),
    "sizes below 1": (("shapes", "dynamics_w"), [-2, 8, -2], "shapes.dynamics_w must be 3 sizes from 1 on"),
    "more values than a memory holds": (("shapes", "dynamics_h"), [2, 8, 10**12], "values together"),
    "parts that do not fit together": (("shapes", "dynamics_h"), [2, 9, 2], "dynamics_h must be as dynamics_w"),
    "another shape of log-variances": (("shapes", "structure_logvar"), [3, 4, 2, 3], r"the shape \[3, 4, 2, 2\] of"),
    "a shape that is missing": (("shapes",), {}, "shapes.structure is missing"),
    "statistics that are missing": (("statistics",), {}, "statistics.dynamics_h is missing"),
    "a mean too few": (("statistics", "structure", "mean"), [0.5, 0.5], "mean must be a list of 3 numbers"),
    "a mean beyond a double": (("statistics", "structure", "mean"), [1, 10**400, 1], r"mean\[1\] must be a number"),
    "a deviation below 0": (("statistics", "structure", "deviation"), [1, -1, 1], "that are not negative"),
    "frames that do not go on": (("windows", "frame_stride"), 0, "windows.frame_stride must be at least 1"),
}


@pytest.mark.parametrize("name", OF_LATENTS)
def test_a_description_of_latents_that_lies_is_refused_by_field(name: str, latents: Path, tmp_path: Path) -> None:
    place, value, message = OF_LATENTS[name]
    document = json.loads((latents / "dataset.json").read_text())
    inner = document["latents"]
    for key in place[:-1]:
        inner = inner[key]
    assert inner[place[-1]] != value
    inner[place[-1]] = value
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message) as refused:
        DatasetFile.load(LocalStore(tmp_path), LATENTS)
    assert "dataset.json" in str(refused.value)


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_parts_of_a_dataset_that_are_no_files_are_refused_at_once(kind: str, hostile: Path) -> None:
    for name in ("dataset.json", "index.arrow"):
        (hostile / name).unlink()
        if kind == "fifo":
            os.mkfifo(hostile / name)
        else:
            (hostile / name).symlink_to("/dev/zero")
    with pytest.raises(OSError, match="not a regular file"):
        DatasetFile.load(LocalStore(hostile))
    with pytest.raises(OSError, match="not a regular file"):
        SampleTable(hostile / "index.arrow", 2)
    with pytest.raises(OSError, match="not a regular file"):
        LocalStore(hostile).size("index.arrow")
    with pytest.raises(OSError, match="not a regular file"):
        LocalStore(hostile).read_to_file("index.arrow", hostile / "copy")
    assert not (hostile / "copy").exists()


# ---- index.arrow ----------------------------------------------------------------------------------------------------


def table_of(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.BufferReader(file.read_bytes())).read_all().combine_chunks()


def write(file: Path, table: pa.Table) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def with_value(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """A column whose last row has another value."""

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        return table.set_column(place, field, pa.array([*table.column(name).to_pylist()[:-1], value], field.type))

    return change


INDEXES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "negative offset": (with_value("offset", -512), "row 5 has offset -512"),
    "offset of 2^63 - 1": (with_value("offset", 2**63 - 1), "row 5 has offset"),
    "negative size": (with_value("size", -1), "row 5 has size -1"),
    "no key": (with_value("key", None), "row 5 has no key"),
    "a key that is a path": (with_value("key", "../../x"), r"row 5 has the key '\.\./\.\./x', and no key has a slash"),
    "no frames": (with_value("frames", None), "row 5 has no frames"),
    "shard -1": (with_value("shard", -1), "row 5 has shard -1"),
    "shard beyond": (with_value("shard", 9), "row 5 has shard 9, and 0 to 1 is possible"),
    "height of 2^31 - 1": (with_value("height", 2**31 - 1), "row 5 has height"),
    "negative frames": (with_value("frames", -3), "row 5 has frames -3"),
    "a column is missing": (lambda table: table.drop_columns(["offset"]), "no column offset"),
    "a column of another type": (
        lambda table: table.set_column(table.schema.get_field_index("offset"), "offset", pa.array(["x"] * len(table))),
        "column offset is string",
    ),
    "no split": (with_value("split", None), "row 5 has no split"),
    "splits that are numbers": (
        lambda table: table.set_column(table.schema.get_field_index("split"), "split", pa.array([1] * len(table))),
        "column split is int64",
    ),
    "two columns of one name": (lambda table: table.append_column("key", table.column("key")), "two columns key"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_lies_is_refused_by_row_or_column(name: str, hostile: Path) -> None:
    change, message = INDEXES[name]
    write(hostile / "index.arrow", change(table_of(hostile / "index.arrow")))
    with pytest.raises(ValueError, match=message):
        SampleTable(hostile / "index.arrow", 2)


@pytest.mark.parametrize("column", ["split", "frames"])
def test_an_index_without_a_column_that_a_reader_needs_is_refused(column: str, hostile: Path) -> None:
    write(hostile / "index.arrow", table_of(hostile / "index.arrow").drop_columns([column]))
    table = SampleTable(hostile / "index.arrow", 2)
    with pytest.raises(ValueError, match=f"index.arrow has no column {column}; launch/verify_shards.py"):
        list(table.of_split("train", "frames"))
    with pytest.raises(ValueError, match=f"has no column {column}"):
        list(table.columns(column))


@pytest.mark.parametrize("column", ["key", "label", "split", "source"])
def test_offsets_of_texts_that_point_elsewhere_are_refused(column: str, hostile: Path) -> None:
    """Arrow would read memory that is not the file's, and the process would die."""
    file = hostile / "index.arrow"
    table, raw = table_of(file), bytearray(file.read_bytes())
    rows = len(table)
    offsets = table.column(column).chunk(0).buffers()[1].to_pybytes()[: 4 * (rows + 1)]
    places = [at for at in range(0, len(raw) - len(offsets), 4) if raw[at : at + len(offsets)] == offsets]
    for at in places:
        raw[at : at + len(offsets)] = b"".join((number * 2**27).to_bytes(4, "little") for number in range(rows + 1))
    assert places
    file.write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="not a readable Arrow index"):
        SampleTable(file, 2)
    with pytest.raises(ValueError, match="unit index is damaged"):
        read_unit_index(bytes(raw))


@pytest.mark.parametrize("cut", [b"", b"hello", b"ARROW1\0\0" + bytes(64), None])
def test_an_index_that_is_none_is_refused(cut: bytes | None, hostile: Path) -> None:
    file = hostile / "index.arrow"
    file.write_bytes(file.read_bytes()[:-700] if cut is None else cut)
    with pytest.raises(ValueError, match="not a readable Arrow index"):
        SampleTable(file, 2)


def test_a_mutated_index_is_read_or_refused_and_never_kills(hostile: Path) -> None:
    """Each byte that a digest would notice is changed in turn; 60 places spread over the file."""
    file = hostile / "index.arrow"
    whole = file.read_bytes()
    refused = 0
    for number in range(60):
        raw = bytearray(whole)
        raw[len(raw) * number // 60] ^= 1 << number % 8
        file.write_bytes(bytes(raw))
        try:
            table = SampleTable(file, 2)
            assert len(table.samples(range(len(table)))) == len(table)
        except (ValueError, OSError):
            refused += 1
    assert refused


# ---- shards ---------------------------------------------------------------------------------------------------------


def header(size: bytes, kind: bytes = b"0") -> bytes:
    """The bytes of a sample whose tar header has another size field, with a good checksum."""
    raw = bytearray(encoded([("k.mp4", b"x")]))
    raw[124:136], raw[156:157] = size.ljust(12, b"\0"), kind
    total = sum(raw[:512]) - sum(raw[148:156]) + 8 * ord(" ")
    raw[148:156] = b"%06o\0 " % total
    return bytes(raw)


@pytest.mark.parametrize(
    "raw",
    [
        header(b"-0000001000"),  # octal -512: the next header would be this one again
        header(b"-0000000001"),
        header(b"+0000000001"),
        header(b"0_000000001"),
        header(b"0o000000001"),
        header(b"\xff" * 12),  # a negative number in base 256
        header(b"\x80" + b"\x7f" * 11),  # one of 87 bits
        header(b"77777777777"),
        header(b"           "),
        header(b"00000000001", b"2"),  # a link
        header(b"00000000001", b"x"),  # a pax header
        header(b"\xd9\xa1"),  # a digit that is not ASCII
    ],
)
def test_a_tar_header_that_lies_is_a_bad_sample(raw: bytes) -> None:
    with pytest.raises(ClipError):
        parse_members(raw, "k")


def test_a_good_header_is_read_as_python_reads_it() -> None:
    for size in (b"00000000001", b" 0000000001", b"1 "):
        block = header(size)[:512]
        assert read_header(block, 0).size == tarfile.TarInfo.frombuf(block, "utf-8", "replace").size == 1


def test_a_caption_behind_a_tar_header_that_lies_is_a_bad_sample(latents: Path, tmp_path: Path) -> None:
    """Whoever wrote the shard has written its checksums, too."""
    root = Path(shutil.copytree(latents, tmp_path / "copy"))
    table = table_of(root / "index.arrow")
    row = table.to_pylist()[0]
    (shard,) = (root / "shards").iterdir()
    raw = bytearray(shard.read_bytes())
    header = raw.index(f"{row['key']}.txt".encode())
    raw[header + 124 : header + 136] = b"no octal..\0\0"
    shard.write_bytes(raw)
    sample = bytes(raw[row["offset"] : row["offset"] + row["size"]])
    checksums = [zlib.crc32(sample), *table.column("crc32").to_pylist()[1:]]
    place, field = table.schema.get_field_index("crc32"), table.schema.field("crc32")
    write(root / "index.arrow", table.set_column(place, field, pa.array(checksums, field.type)))
    index = (root / "index.arrow").read_bytes()
    document = json.loads((root / "dataset.json").read_text())
    document["index"] |= {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()}
    (root / "dataset.json").write_text(json.dumps(document))
    with pytest.raises(UnreadableSample, match="has a damaged tar header in front of its caption: the size b'no octal"):
        open_latents(str(root))[row["key"]]


def test_the_digest_is_no_protection(hostile: Path) -> None:
    """What the tests above change has its digest in dataset.json; whoever changes one changes the other."""
    document = json.loads((hostile / "dataset.json").read_text())
    raw = (hostile / "index.arrow").read_bytes()
    assert document["index"]["sha256"] == hashlib.sha256(raw).hexdigest()

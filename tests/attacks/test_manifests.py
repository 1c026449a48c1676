"""Manifests of a stranger end in one line that names the row or the file, or are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.dataset.plan_parts import PLAN_SCHEMA, read_part
from data_pipeline.dataset.row_fates import RETRIED_ERROR
from data_pipeline.outside.regular import NotRegular
from data_pipeline.source.manifest import open_manifest
from data_pipeline.source.sizes import MOST_LINE
from data_pipeline.source.sorting import MOST_BYTES, bring_together
from data_pipeline.store.open import open_store
from tests.tools.memory_limit import memory_limit

pytestmark = pytest.mark.timeout(60)


def text_of(*values: bytes) -> pa.Array:
    """Texts that are not UTF-8, as Parquet lets them pass."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(list(values), pa.binary()).buffers())


TABLES: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "start of 2^60": (lambda: pa.table({"video": ["a.mp4"], "start": [2**60]}), "row 1: start must be seconds"),
    "end of -1": (lambda: pa.table({"video": ["a.mp4"], "end": [-1]}), "row 1: end must be seconds"),
    "a date beyond Python's": (
        lambda: pa.table({"video": ["a.mp4"], "x": pa.array([2**53], pa.timestamp("ms"))}),
        "row 1: column 'x' cannot be kept: it holds a time that is out of range",
    ),
    "a duration beyond Python's": (
        lambda: pa.table({"video": ["a.mp4"], "x": pa.array([2**62], pa.duration("ms"))}),
        "row 1: column 'x' cannot be kept",
    ),
    "a date as start": (
        lambda: pa.table({"video": ["a.mp4"], "start": pa.array([2**53], pa.timestamp("ms"))}),
        "row 1: start must be seconds",
    ),
    "two columns of one name": (lambda: pa.table([["a"], ["b"]], names=["video", "video"]), "names a column twice"),
    "a video that is not UTF-8": (lambda: pa.table({"video": text_of(b"\xff\xfe.mp4")}), "not UTF-8"),
    "a further text that is not UTF-8": (lambda: pa.table({"video": ["a.mp4"], "x": text_of(b"\xff")}), "not UTF-8"),
    "bytes": (lambda: pa.table({"video": ["a.mp4"], "x": pa.array([b"\xff"], pa.binary())}), "column 'x' holds bytes"),
    "few bytes that stand for 8 GB": (
        lambda: pa.table({"video": pa.DictionaryArray.from_arrays(pa.array([0] * 8192, pa.int32()), ["a" * 2**20])}),
        "m.parquet rows 1 to 8192: column 'video' holds 8590 MB",
    ),
    "few bytes that stand for 8 GB in a further column": (
        lambda: pa.table(
            {
                "video": ["a"] * 8192,
                "x": pa.DictionaryArray.from_arrays(pa.array([0] * 8192, pa.int32()), ["a" * 2**20]),
            }
        ),
        "m.parquet rows 1 to 8192: column 'x' holds 8590 MB",
    ),
    "few bytes that stand for 41 million items": (
        lambda: pa.table(
            {
                "video": ["a"] * 8192,
                "x": pa.ListArray.from_arrays(pa.array(range(0, 8193 * 5000, 5000), pa.int32()), pa.nulls(8192 * 5000)),
            }
        ),
        "m.parquet rows 1 to 3584: column 'x' holds 287 MB",  # 16 bytes an item, looked at every 256 rows
    ),
    "more columns than a table has": (
        lambda: pa.table({"video": ["a.mp4"], **{f"c{number}": [1] for number in range(5000)}}),
        "m.parquet: it has 5001 columns",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_parquet_file_that_lies_names_the_row_or_the_column(name: str, tmp_path: Path) -> None:
    make, message = TABLES[name]
    pq.write_table(make(), tmp_path / "m.parquet", compression="zstd")
    with pytest.raises(ValueError, match=message) as refused:
        list(open_manifest(tmp_path / "m.parquet").batches)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"video": "a.mp4", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "row 1"),
        ('{"video": "a.mp4", "x": ' + "9" * 5000 + "}", "row 1: is not JSON: it holds a number of 5000 digits"),
        (  # to look for each of the names among all of them would take minutes
            "{" + "".join(f'"{n}": 1, ' for n in range(100_000)) + '"z": 1, "z": 2}',
            "row 1: is not JSON: the name 'z' stands there twice",
        ),
        ('{"video": "a.mp4", "start": ' + "9" * 400 + "}", "row 1: start must be seconds"),
        ('{"video": "a.mp4", "start": 1e999}', "row 1"),
        ('{"video": "\\udc80.mp4"}', "row 1"),
        ('{"video": "a.mp4", "caption": "\\ud800"}', "row 1"),
        ('{"video": "a.mp4", "\\ud800": 1}', "row 1"),
        ('{"video": {"a": 1}}', "row 1: video must be text"),
        ('{"video": "a.mp4", "start": "\\u001b[2J"}', "row 1: start must be seconds"),
    ],
)
def test_a_line_that_lies_names_its_row(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message) as refused:
        list(open_manifest(tmp_path / "m.jsonl").batches)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("depth", [300, 900, 980, 985, 986, 987, 988, 989, 990, 5000])
@pytest.mark.parametrize("column", ["video", "caption", "start", "x"])
def test_a_line_nested_less_deeply_than_can_be_read_names_its_row(column: str, depth: int, tmp_path: Path) -> None:
    """What Python has just read it may not be able to write, nor what looks at the types of such a column."""
    row = {"video": '"a.mp4"', "caption": '"\\u0041"', column: "[" * depth + "]" * depth}
    values = ", ".join(f"{json.dumps(name)}: {value}" for name, value in row.items())
    (tmp_path / "m.jsonl").write_text(f"{{{values}}}\n")
    with pytest.raises(ValueError, match=r"row 1: (holds more than 256 lists or objects inside|is not JSON)"):
        list(open_manifest(tmp_path / "m.jsonl").batches)


def shared(text: str, rows: int, file: Path, **columns: pa.Array) -> Path:
    """A Parquet file of some hundred bytes whose rows share one text; readers take it for a plain column of texts."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [text])
    pq.write_table(pa.table({"video": texts} | columns), file, compression="zstd", store_schema=False)
    assert file.stat().st_size < 100_000
    assert pq.read_schema(file).field("video").type == pa.string()
    return file


@pytest.mark.parametrize(("nested", "rows", "size"), [(False, 8192, 34360), (True, 256, 1074)])
def test_a_text_that_all_rows_share_is_measured_before_each_has_it(
    nested: bool, rows: int, size: int, tmp_path: Path
) -> None:
    """34 GB, of which a few rows of lists are looked at first. The memory of this process may grow by less than 3."""
    columns = {}
    if nested:
        texts = pa.DictionaryArray.from_arrays(pa.array([0] * 8192, pa.int32()), ["a" * 2**22])
        columns["x"] = pa.ListArray.from_arrays(pa.array(range(8193), pa.int32()), texts)
    file = shared("a.mp4" if nested else "a" * 2**22, 8192, tmp_path / "m.parquet", **columns)
    with memory_limit(2**31):
        for read in (lambda: next(open_manifest(file).batches), lambda: bring_together(file, tmp_path / "o.parquet")):
            with pytest.raises(ValueError, match=rf"m\.parquet rows 1 to {rows}: column '(video|x)' holds {size} MB"):
                read()


def test_a_part_of_a_plan_is_measured_as_well(tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 8192, pa.int32()), ["a" * 2**22])
    plain = {name: pa.array([""] * 8192) for name in ("id", "video", "label", "split", "extra", RETRIED_ERROR)}
    numbers = {"row": pa.array(range(8192), pa.int64()), "duplicate_of": pa.nulls(8192, pa.int64())}
    times = {name: pa.nulls(8192, pa.float64()) for name in ("start", "end")}
    columns = plain | numbers | times | {"caption": texts}
    table = pa.table([columns[name] for name in PLAN_SCHEMA.names], PLAN_SCHEMA.names)
    fields = [field.with_type(table.schema.field(field.name).type) for field in PLAN_SCHEMA]
    pq.write_table(table.cast(pa.schema(fields)), tmp_path / "p.parquet", store_schema=False)
    store = open_store(str(tmp_path))
    with memory_limit(2**31), pytest.raises(ValueError, match=r"p\.parquet rows 1 to 8192: column 'caption' holds 34"):
        read_part(store, "p.parquet")
    for damaged in (b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "p.parquet").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"p\.parquet cannot be read as Parquet: .*; restore it"):
            read_part(store, "p.parquet")


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv", ".csv", ".parquet"])
def test_a_manifest_that_is_too_large_to_be_sorted_is_refused_unread(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"m{suffix}"
    with file.open("wb") as opened:
        opened.truncate(2 * MOST_BYTES)
    with pytest.raises(ValueError, match=r"has 17179869184 bytes, and at most 8589934592 are sorted in memory"):
        bring_together(file, tmp_path / f"o{suffix}")
    with file.open("wb") as opened:
        opened.truncate(MOST_LINE + 1)
    with pytest.raises(ValueError, match=rf"m\{suffix} (line 1 |cannot be read as Parquet)"):
        bring_together(file, tmp_path / f"o{suffix}")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(NotRegular):
        bring_together(file, tmp_path / f"o{suffix}")


def test_a_line_nested_deeply_is_not_sorted(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"video":' + "[" * 10**5 + "]" * 10**5 + "}\n")
    with pytest.raises(ValueError, match=r"m\.jsonl line 1 is not JSON: "):
        bring_together(tmp_path / "m.jsonl", tmp_path / "o.jsonl")


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv", ".csv"])
def test_a_line_without_an_end_is_not_read_into_memory(suffix: str, tmp_path: Path) -> None:
    """The file is sparse, so it takes no room on the disk."""
    file = tmp_path / f"m{suffix}"
    with file.open("w") as opened:
        opened.truncate(2**38)
    with pytest.raises(ValueError, match=f"m{suffix} line 1 has 67108864 characters or more"):
        list(open_manifest(file).batches)


def test_lines_of_other_names_each_are_no_table(tmp_path: Path) -> None:
    """A hundred bytes a row would otherwise take 0.1 MB a row."""
    file = tmp_path / "m.jsonl"
    rows = [{"video": "a.mp4"} | {f"c{row}_{number}": 1 for number in range(9)} for row in range(500)]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"m\.jsonl rows 1 to 500: it has 4501 columns, and at most 4096"):
        list(open_manifest(file).batches)


def test_a_mutated_parquet_file_is_read_or_refused(tmp_path: Path) -> None:
    """60 places spread over the file, one bit each."""
    table = pa.table({"video": ["a.mp4"]})
    for number in range(20):
        table = table.append_column(f"c{number}", pa.array([None], pa.null()))
    pq.write_table(table, tmp_path / "m.parquet")
    whole = (tmp_path / "m.parquet").read_bytes()
    refused = 0
    for number in range(60):
        raw = bytearray(whole)
        raw[len(raw) * number // 60] ^= 1 << number % 8
        (tmp_path / "m.parquet").write_bytes(bytes(raw))
        try:
            assert sum(batch.num_rows for batch in open_manifest(tmp_path / "m.parquet").batches) <= table.num_rows
        except ValueError:
            refused += 1
    assert refused

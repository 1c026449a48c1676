"""dataset.json and index.arrow: read as written, and refused when they cannot be right."""

import json
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.read.sample_table import SampleTable
from data_pipeline.read.selection import select_clips
from data_pipeline.store.open import open_store
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.data_pipeline.read.loading import CLIPS, config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_dataset(tmp_path, split_into_shards(CLIPS, (4, 1, 6, 0, 2)))


def test_rows_are_those_written_and_point_at_their_bytes(root: Path) -> None:
    dataset = DatasetFile.load(open_store(root))
    table = SampleTable(root / "index.arrow", len(dataset.shards))
    assert len(table) == 31
    for row, clip in enumerate(CLIPS):
        sample = table[row]
        assert (sample.row, sample.key, sample.frames, sample.label) == (row, clip.key, clip.frames, clip.label)
        data = (root / dataset.shards[sample.shard].name).read_bytes()
        assert data[sample.video_offset :][: sample.video_size] == clip.video
        assert data[sample.offset :][: len(clip.key)] == clip.key.encode()


def test_selection_counts_by_shard_and_says_what_is_left_out(root: Path) -> None:
    table = SampleTable(root / "index.arrow", 12)
    selection = select_clips(table, config(root, frames=9))
    long = [row for row, clip in enumerate(CLIPS) if clip.frames >= 9]
    assert selection.rows.tolist() == long
    assert selection.left_out == {"too few frames": 31 - len(long)}
    per_shard = [sum(table[row].shard == shard for row in long) for shard in range(12)]
    assert selection.counts.tolist() == per_shard
    shards = sum(n > 0 for n in per_shard)
    assert selection.describe() == f"20 samples in {shards} shards; left out: 11 samples with too few frames"


def test_a_clip_is_large_enough_when_its_shorter_side_is(tmp_path: Path) -> None:
    """Both ways round, and to the pixel."""
    clips = [clip for size in ((64, 48), (46, 48), (48, 46), (48, 64)) for clip in make_clips(2, size=size)]
    table = SampleTable(write_dataset(tmp_path, [clips]) / "index.arrow", 1)
    selection = select_clips(table, config(tmp_path, image_size=48))
    assert selection.rows.tolist() == [0, 1, 6, 7]
    assert selection.left_out == {"too small": 4}
    assert selection.describe() == "4 samples in 1 shard; left out: 4 samples with too small frames"
    assert select_clips(table, config(tmp_path, image_size=48, resize=48)).left_out == {}


@pytest.mark.parametrize(
    ("fps", "exact"), [(8, 8), (29.97, Fraction(2997, 100)), (30000 / 1001, Fraction(30000, 1001))]
)
def test_the_rate_is_the_fraction_that_was_meant(root: Path, fps: float, exact: Fraction) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fps": fps}))
    assert DatasetFile.load(open_store(root)).fps == exact


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, and this version reads 1"),
        ({"shards": None}, "is damaged"),
        ({"fps": None}, "is damaged"),
    ],
)
def test_a_dataset_file_of_another_kind_is_refused(root: Path, change: dict[str, object], message: str) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        DatasetFile.load(open_store(root))


def test_damaged_files_are_refused(root: Path) -> None:
    (root / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        DatasetFile.load(open_store(root))
    (root / "index.arrow").write_bytes(b"junk" * 100)
    with pytest.raises(ValueError, match="not a readable Arrow index"):
        SampleTable(root / "index.arrow", 12)


def test_an_index_out_of_order_is_refused(root: Path) -> None:
    path = root / "index.arrow"
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    backwards = table.take(list(range(len(table)))[::-1])
    with pa.OSFile(str(root / "other.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(backwards)
    with pytest.raises(ValueError, match="not in order of its shards"):
        select_clips(SampleTable(root / "other.arrow", 12), config(root))
    batches = table.to_batches()  # each in order by itself
    with pa.OSFile(str(root / "batches.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for batch in [*batches[2:], *batches[:2]]:
            writer.write_batch(batch)
    with pytest.raises(ValueError, match="not in order of its shards"):
        select_clips(SampleTable(root / "batches.arrow", 12), config(root))
    with pytest.raises(ValueError, match=r"row \d+ has shard 11, and 0 to 10 is possible"):
        SampleTable(path, 11)

"""No reader takes a row from an index that is not the one of dataset.json, whatever is wrong with it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipeline.dataset.index_file import DamagedIndex
from data_pipeline.latents.source import opened_source
from data_pipeline.read.latent_archive import open_latents
from data_pipeline.read.loader import ClipLoader
from data_pipeline.store.open import open_store
from tests.data_pipeline.latents_dataset import make_clips, write_latents
from tests.data_pipeline.read.loading import config, upload

Open = Callable[[Path | str], object]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    write_latents(folder, [make_clips(4), make_clips(2, split="val")])
    return folder


def open_clips(place: Path | str) -> object:
    return ClipLoader(config(place))


def open_archive(place: Path | str) -> object:
    return open_latents(str(place))


def open_as_source(place: Path | str) -> object:
    with opened_source(open_store(place)) as source:
        return source.row(0)


@pytest.fixture(params=["clips", "source of an encoding", "latents"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Open, str]:
    """A copy of a dataset, what opens it, and the script that made it."""
    opened, made_by, name = {
        "clips": (open_clips, "launch/build_shards.py", "root"),
        "source of an encoding": (open_as_source, "launch/build_shards.py", "root"),
        "latents": (open_archive, "launch/encode_latents.py", "latents"),
    }[request.param]
    folder = shutil.copytree(request.getfixturevalue(name), tmp_path / "dataset")
    opened(folder)
    return folder, opened, made_by


def refused(folder: Path | str, opened: Open, made_by: str) -> str:
    """What is wrong, by a message that names the file and the remedy."""
    with pytest.raises(DamagedIndex) as caught:
        opened(folder)
    fault, remedy = str(caught.value).split(", so it is not the index that dataset.json names; ")
    name = f"{folder}/index.arrow "
    assert fault.startswith(name)
    assert remedy.startswith(f"run the same command of {made_by} again that made the dataset: it makes the index anew")
    return fault.removeprefix(name)


def test_any_bit_that_has_flipped_is_seen(dataset: tuple[Path, Open, str]) -> None:
    """Texts, offsets, splits and the frame of the file: at 41 places from the first byte to the last."""
    folder, *rest = dataset
    path = folder / "index.arrow"
    data = path.read_bytes()
    for number in range(41):
        damaged = bytearray(data)
        damaged[(len(data) - 1) * number // 40] ^= 1 << (number % 8)
        path.write_bytes(damaged)
        assert refused(folder, *rest) == "has another SHA-256"


def test_an_index_that_is_cut_short_or_missing_is_refused(dataset: tuple[Path, Open, str]) -> None:
    folder, *rest = dataset
    path = folder / "index.arrow"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert refused(folder, *rest) == f"has {len(data) - 1} bytes and not {len(data)}"
    path.unlink()
    assert refused(folder, *rest) == "is missing"


def test_an_index_on_a_store_is_refused_in_the_same_words(latents: Path, moto_bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{moto_bucket}/{tmp_path.name}"
    upload(latents, uri)
    store = open_store(uri)

    def opened(place: Path | str) -> object:
        return open_latents(str(place), cache_dir=str(tmp_path / "cache"))

    data = bytearray(store.read("index.arrow"))
    data[len(data) // 2] ^= 4
    store.write("index.arrow", bytes(data))
    assert refused(uri, opened, "launch/encode_latents.py") == "has another SHA-256"
    store.delete("index.arrow")
    assert refused(uri, opened, "launch/encode_latents.py") == "is missing"


def test_an_index_whose_digest_is_right_and_whose_texts_are_none_is_refused(latents: Path, tmp_path: Path) -> None:
    """The file and its digest are of somebody else's program: a key ends beyond the end of all keys."""
    folder = shutil.copytree(latents, tmp_path / "dataset")
    path = folder / "index.arrow"
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all().combine_chunks()
    keys = table.column("key").chunk(0)
    offsets = bytearray(keys.buffers()[1].to_pybytes())
    offsets[4:8] = (1 << 20).to_bytes(4, "little")
    broken = pa.Array.from_buffers(pa.string(), len(keys), [None, pa.py_buffer(bytes(offsets)), keys.buffers()[2]])
    table = table.set_column(0, table.schema.field("key"), broken)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = json.loads((folder / "dataset.json").read_text())
    content["index"] |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"index\.arrow is not a readable Arrow index .* launch/verify_shards\.py"):
        open_archive(folder)
